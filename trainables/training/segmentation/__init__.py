"""Training of a segmentation: batches of patches, losses per pixel, and the learner that the training loop runs."""
