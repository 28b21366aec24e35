"""What should happen: plan, signatures, reconciliation, budget. Pure, but for ``inputs``."""
