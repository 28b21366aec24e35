"""The explorer of segmentations: cases with their masks, worst first."""
