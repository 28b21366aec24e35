"""Groups of images on which a model fails: one map of all sets, clusters in feature space, their error rates."""
