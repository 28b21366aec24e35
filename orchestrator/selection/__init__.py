"""The chosen model: rank the arms, export a model with a card, register it in MLflow."""
