"""Attributions: which pixels a trained classifier's output for a class depends on, by captum."""
