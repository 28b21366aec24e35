"""Evaluation of a segmentation: predictions by windows, metrics per case and class, calibration of pixels."""
