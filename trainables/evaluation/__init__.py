"""Stored predictions, metrics, and the evaluation of a model under every shift."""
