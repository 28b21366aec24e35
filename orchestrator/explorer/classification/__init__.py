"""The explorer of classifications: a map of all images, those that are wrong and confident first."""
