"""Tests of ``trainables``."""
