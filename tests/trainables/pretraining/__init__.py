"""Tests of ``trainables.pretraining``."""
