"""Tests of ``trainables.evaluation.detection``."""
