"""Where the project and its development images lie."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
#: Small real image sets; tests that need one are skipped where it is absent.
DATA = Path(os.environ.get("ROBUSTSWEEP_DATA", ROOT.parent / "shared" / "data"))
