"""The study file: schema, parsing, checks, grid, hypotheses."""
