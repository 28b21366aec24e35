"""Tests of ``trainables.evaluation.representation``."""
