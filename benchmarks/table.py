"""All benchmarks in their quick form, as a table beside the committed figures: ``make bench``.

    python benchmarks/table.py                # quick, about twenty minutes on two cores
    python benchmarks/table.py --ci           # a subset, two minutes
    python benchmarks/table.py --full         # with the sizes of the claims, two hours
    python benchmarks/table.py --write        # and replace the measured lines of benchmarks/results.json

A ratio above 1 is better than the peer or the bar. The exit code is 0 whatever is measured, since a busy machine is no
error, and 1 when a script fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"

#: Minutes less: what every CI run prints.
CI = (
    ("startup.py", "--repeat", "1"),
    ("training.py", "--images", "1024", "--epochs", "1", "--repeat", "1"),
    ("tracking.py", "--runs", "10"),
)
QUICK = (
    ("startup.py", "--repeat", "3"),
    ("orchestration.py",),
    ("bookkeeping.py",),
    ("resume.py",),
    ("object_listing.py",),
    ("tracking.py",),
    ("training.py",),
    ("packing.py",),
    ("memory.py",),
    ("evaluation.py", "--trials", "4", "--images", "4"),
)
FULL = (
    *QUICK,
    ("bookkeeping.py", "--trials", "10000"),
    ("report.py",),
    ("orchestration.py", "--trials", "120", "--peers", "bare"),
    ("resume.py", "--trials", "10000"),
    ("object_listing.py", "--trials", "10000", "--server", "pages"),
    ("object_listing.py", "--trials", "10000", "--server", "pages", "--latency-ms", "150"),
    ("tracking.py", "--runs", "1000"),
    ("evaluation.py",),
    ("significance.py",),
    ("hypotheses.py",),
    ("patients.py",),
    ("near_duplicates.py",),
    ("failure_metrics.py", "--full"),
    ("spectral_ood.py",),
    ("representation.py",),
    ("attribution.py",),
    ("segmentation.py",),
    ("segmentation_training.py",),
    ("joint_training.py",),
    ("pretraining.py",),
    ("pretraining_stages.py",),
    ("simulation.py", "--cluster"),
    ("linear_probe.py",),
    ("explorer.py",),
    # These make an environment for their peer, and need a package index.
    ("shifts.py",),
    ("shift_parity.py",),
    ("shift_draws.py",),
    ("shift_accuracy.py",),
    ("augmentation.py",),
    ("augmentation_parity.py",),
)
#: A ratio below this share of the committed one is called worse; two runs of one commit differ by about a tenth.
TOLERANCE = 0.8


def run_script(words: Sequence[str]) -> list[dict[str, Any]]:
    """Run one benchmark; return its JSON lines.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [sys.executable, str(HERE / words[0]), *words[1:]]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"benchmark"')]


def load_results() -> dict[str, dict[str, Any]]:
    """Return benchmark → committed line."""
    return {line["benchmark"]: line for line in json.loads(RESULTS.read_text())}


def write_results(lines: Sequence[Mapping[str, Any]], before: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the lines that were measured, keep the others."""
    merged = {**before, **{line["benchmark"]: line for line in lines}}
    text = ",\n".join(json.dumps(merged[name]) for name in sorted(merged))
    RESULTS.write_text(f"[\n{text}\n]\n")


def judge(line: Mapping[str, Any], before: Mapping[str, Any] | None) -> str:
    """Return how a line compares with the committed one: new, worse, better or as before."""
    if before is None:
        return "new"
    change = line["ratio"] / before["ratio"]
    if change < TOLERANCE:
        return "worse"
    return "better" if change > 1 / TOLERANCE else "as before"


def make_table(lines: Sequence[Mapping[str, Any]], before: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the table: ratio, committed ratio, bar, and what to think of it."""
    table = Table(Column("benchmark", no_wrap=True), "ratio", "committed", "bar", "reaches it", "change")
    for line in lines:
        old = before.get(line["benchmark"])
        table.add_row(
            line["benchmark"],
            f"{line['ratio']:.2f}",
            "" if old is None else f"{old['ratio']:.2f}",
            f"{line['bar']:.2f}",
            "yes" if line["ok"] else "no",
            judge(line, old),
        )
    return table


def main() -> None:
    """Run the benchmarks, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--ci", action="store_true")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    before, lines, failed = load_results(), [], []
    console = Console(width=110)
    for words in FULL if asked.full else CI if asked.ci else QUICK:
        console.print(f"running {' '.join(words)}", highlight=False)
        try:
            lines += run_script(words)
        except subprocess.CalledProcessError as error:  # it has said why
            failed.append(f"{' '.join(words)} ended with exit code {error.returncode}")
        if asked.write:
            write_results(lines, before)
    console.print(make_table(lines, before))
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
