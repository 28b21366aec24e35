"""Tests of ``trainables.augmentation``."""
