"""Tests of ``trainables.data.sources``."""
