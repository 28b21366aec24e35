"""Tests of ``trainables.evaluation``."""
