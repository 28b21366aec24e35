"""The explorer of segmentations."""
