"""Tests of ``trainables.models``."""
