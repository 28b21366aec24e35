"""The report: one HTML file with tables and figures, drawn from the results of ``analysis``."""
