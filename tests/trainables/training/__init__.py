"""Tests of ``trainables.training``."""
