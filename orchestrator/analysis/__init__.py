"""Numbers and tables computed from the ledger: results, effects, verdicts. Knows no HTML and no plotting."""
