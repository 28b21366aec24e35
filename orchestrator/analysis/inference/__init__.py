"""Verdicts on hypotheses: units, tests, intervals, and how far they reach."""
