"""Severities of equal difficulty: scales of strength, and the strengths at which one model loses the same share."""
