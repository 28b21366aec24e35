"""Training by several processes together, each with its share of every batch."""
