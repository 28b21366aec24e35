"""Tests of ``driver``."""
