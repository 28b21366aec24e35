"""State of a running study for other programs: snapshots in the ledger, metrics for Prometheus."""
