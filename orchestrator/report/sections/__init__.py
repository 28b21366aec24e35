"""One module per section of the report: its words and its figure."""
