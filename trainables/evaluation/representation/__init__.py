"""Statistics of what an encoder has learned, on plain arrays of features: spread of directions, rank, neighbours."""
