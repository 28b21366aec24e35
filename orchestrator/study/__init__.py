"""The study file: schema, parsing, checks, the grid, hypotheses."""
