"""Tests of ``trainables.ops``."""
