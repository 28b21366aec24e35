"""A report of 10,000 trials: CPU seconds, peak memory and the size of the page.

The ledger is synthetic, but written by the package as a worker's is: 50 arms × 200 replicates, each trial with 12
epochs and 73 evaluations (14 shifts × 5 severities, the unshifted sets, one external set). It is made once per folder.

    python benchmarks/report.py --folder FOLDER

The bars are of the issue: less than 20 s, less than 15 MB; memory is measured and has no bar.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, Line, environment

#: 5 × 5 × 2 arms.
FACTORS = {
    "pretraining": ("scratch", "imagenet", "contrastive", "imagenet-21k", "contrastive-imagenet"),
    "augmentation": ("none", "randaugment", "trivialaugment", "augmix", "strong"),
    "regulariser": ("none", "spectral_decoupling"),
}
ARMS = 50
BAR_SECONDS = 20.0
BAR_MIB = 15.0
#: Fewer trials are over before importing pandas and scipy is paid off.
CLAIM = 10_000
STUDY = "report-bench"


def make_ledger(folder: Path, num_trials: int) -> Path:
    """Write the ledger below ``folder``, unless it is there; return the root of its studies.

    Raises:
        ValueError: the number is no multiple of the number of arms.
    """
    if num_trials % ARMS:
        raise ValueError(f"--trials: found {num_trials}, expected a multiple of the {ARMS} arms")
    from tests.support.synthetic_ledger import make_fake_ledger

    storage = folder / f"ledger-{num_trials}"
    done = storage / "whole"
    if not done.exists():
        make_fake_ledger(storage, factors=FACTORS, replicates=num_trials // ARMS, study=STUDY)
        done.touch()
    return storage


def main_report(storage: Path) -> None:
    """Body of the measured process: write the report, print what it took."""
    from orchestrator.ledger.ledger import Ledger
    from orchestrator.report.write import write_report

    started = time.perf_counter()
    report = write_report(Ledger(str(storage), STUDY), cache_dir=storage / "cache", examples=False)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "wall_seconds": time.perf_counter() - started,
                "cpu_seconds": used.ru_utime + used.ru_stime,
                "peak_mib": used.ru_maxrss / 1024,
                "page_mib": Path(report.html).stat().st_size / 2**20,
                "complete": report.counts["complete"],
            }
        )
    )


def measure(folder: Path, num_trials: int) -> list[Line]:
    """Return the lines: CPU seconds against the bar, and the page's size against its own.

    Raises:
        RuntimeError: the report failed, or says less than all trials.
    """
    storage = make_ledger(folder, num_trials)
    words = [sys.executable, __file__, "--storage", str(storage)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"the report ended with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    facts = json.loads(done.stdout.splitlines()[-1])
    if facts["complete"] != num_trials:
        raise RuntimeError(f"the report says {facts['complete']} complete trials, expected {num_trials}")
    facts["trials"] = num_trials
    name = f"report.{num_trials}"
    said = {} if num_trials >= CLAIM else {"bar_is": f"none below {CLAIM} trials"}
    bar = 1.0 if num_trials >= CLAIM else 0.0
    return [
        Line(f"{name}.cpu", BAR_SECONDS / facts["cpu_seconds"], bar, facts | said),
        Line(f"{name}.page", BAR_MIB / facts["page_mib"], bar, {"page_mib": facts["page_mib"], **said}),
    ]


def main() -> None:
    """Measure and print the JSON lines, or be the measured process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where the ledger is kept; default: made anew and removed")
    parser.add_argument("--storage", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.storage is not None:
        main_report(asked.storage)
        return
    with tempfile.TemporaryDirectory(prefix="robustsweep-bench-") as scratch:
        for line in measure(asked.folder or Path(scratch), asked.trials):
            line.emit()


if __name__ == "__main__":
    main()
