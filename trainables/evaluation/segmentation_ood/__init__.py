"""Confidence of segmentations and images unlike training: pixel scores, ensembles, layers; one number per image."""
