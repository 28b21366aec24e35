"""The shift bank: deterministic corruptions with severity tables."""
