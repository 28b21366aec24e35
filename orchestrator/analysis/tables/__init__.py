"""Rows of a study's tables: trials, arms, evaluations, and how tables become text."""
