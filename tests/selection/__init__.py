"""Tests of ``selection``."""
