"""Tests of ``trainables.evaluation.attribution``."""
