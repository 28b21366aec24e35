"""Transfer of initial weights: which layers are trained and how fast, and the features of a linear probe."""
