"""Tests of ``trainables.data``."""
