"""Tests of ``trainables.shifts``."""
