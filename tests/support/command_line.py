from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def call(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command on ``folder/study.yaml`` with the ledger in ``folder/results``, and check that it succeeded."""
    command = [sys.executable, "-m", "robustsweep", words[0], str(folder / "study.yaml"), *words[1:]]
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [*command, "--storage", str(folder / "results")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done
