"""A study's plan replayed on a simulated clock, through the real dispatcher, work queue, search and early stopping."""
