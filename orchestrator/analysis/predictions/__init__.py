"""What is computed from the stored predictions of trials, image by image."""
