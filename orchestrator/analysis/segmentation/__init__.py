"""Segmentations: metrics by arm and data set, and the cases of one trial."""
