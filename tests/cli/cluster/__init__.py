"""Tests of ``cli/cluster``."""
