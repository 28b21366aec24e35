"""Several drivers that share one study: their parts, their leases, and who of them lives."""
