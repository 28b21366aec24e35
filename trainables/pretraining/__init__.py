"""Initial weights: ImageNet weights, and contrastive pretraining."""
