"""``python -m robustsweep`` is ``robustsweep``."""

from orchestrator.cli.main import main

main()
