"""Sources of images with a class for every pixel, and their masks."""
