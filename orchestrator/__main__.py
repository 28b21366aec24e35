"""``python -m orchestrator`` is ``robustsweep``."""

from orchestrator.cli import main

main()
