"""Random augmentation policies, batched and seeded per sample."""
