"""Statistics of plain arrays: intervals, paired tests, trends, factorial designs, power."""
