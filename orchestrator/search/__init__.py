"""Adaptive search: proposals from Optuna or CMA-ES, their outcomes, early stopping."""
