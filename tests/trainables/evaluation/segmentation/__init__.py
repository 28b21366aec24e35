"""Tests of ``trainables.evaluation.segmentation``."""
