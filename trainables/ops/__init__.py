"""Image operations on uint8 batches with one magnitude per sample, shared by augmentation and shifts."""
