"""Tests of ``statistics``."""
