"""Adaptive search: proposals from Optuna or CMA-ES, outcomes, early stopping."""
