"""Tests of ``trainables.data.segmentation``."""
