"""Numbers and tables computed from the ledger: results, effects, verdicts. No HTML and no plotting."""
