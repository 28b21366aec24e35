"""Choose the best arm, export its model with a card, register it in MLflow."""
