"""Tests of ``trainables.storage``."""
