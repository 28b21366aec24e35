"""A study as a job of a Ray cluster: its upload, its attempts in the ledger, the job server, and who watches it."""
