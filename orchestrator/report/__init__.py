"""Statistics, tables, figures and one HTML file, all read from the ledger."""
