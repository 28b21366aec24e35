"""The public door of RobustSweep."""
