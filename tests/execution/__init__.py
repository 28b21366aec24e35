"""Tests of ``execution``."""
