"""Where a model's first weights come from."""
