"""Views of one trained model: classes merged by a label map, and each class by itself."""
