"""Training of one model: loop, step, optimisation, losses, mixing, acceleration."""
