"""Curves of ``docs/scaling.md``: what a study takes on 1 to 512 GPUs, simulated.

    python benchmarks/scaling.py --write          # draws docs/images/scaling-*.svg, prints the tables; minutes
    python benchmarks/scaling.py --most 1000      # up to 1,000 trials, seconds

Everything but the study's trials is as ``robustsweep simulate`` assumes it; nothing runs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import ROOT, make_place

from orchestrator.driver.prepare import Prepared, prepare
from orchestrator.driver.simulation.outcome import Outcome
from orchestrator.driver.simulation.simulate import choose_cluster, find_durations, make_scenario, simulate
from orchestrator.driver.terminal.time_left import format_duration
from orchestrator.report.style import PALETTE
from orchestrator.study.study_file import load_study

#: Numbers of trials, and of GPUs, eight to a node from eight on.
TRIALS = (100, 1_000, 10_000, 100_000)
GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
#: Of the most trials only these: a simulation takes half a minute each.
FEW_GPUS = (8, 64, 512)
#: Seconds of a trial of the first figure, and those of the second with its number of trials.
LONG, LENGTHS, TRIALS_OF_LENGTHS = 600, (1, 5, 20, 60, 600), 10_000
#: Losses per node and hour of the third.
LOSSES = (0.0, 0.05, 0.2, 1.0)


def prepare_study(folder: Path, num_trials: int) -> Prepared:
    """Return a study of trials that wait for nothing."""
    place = make_place(folder, f"of-{num_trials}", levels=5, replicates=num_trials // 10, cache_dir=folder / "cache")
    return prepare(load_study(place.study), storage=str(place.storage))


def run(prepared: Prepared, gpus: int, seconds: float, spot_loss: float = 0.0) -> Outcome:
    """Return the outcome on so many GPUs, with durations that differ by 15 % of their mean."""
    each = min(gpus, 8)
    cluster = choose_cluster(prepared, nodes=gpus // each, gpus=each, spot_loss=spot_loss)
    durations = find_durations(prepared, seconds=f"{seconds}±{0.15 * seconds}")
    return simulate(make_scenario(prepared, durations, cluster, whole=True), repeats=1, seed=0)[0]


def measure(most: int) -> dict[str, list[dict[str, Any]]]:
    """Return the points of the figures: by number of trials, by their length, by losses."""
    found: dict[str, list[dict[str, Any]]] = {"trials": [], "lengths": [], "losses": []}
    with tempfile.TemporaryDirectory(prefix="robustsweep-bench-") as root:
        studies = {number: prepare_study(Path(root), number) for number in TRIALS if number <= most}
        for number, prepared in studies.items():
            for gpus in FEW_GPUS if number == TRIALS[-1] else GPUS:
                found["trials"].append(describe(run(prepared, gpus, LONG), trials=number, gpus=gpus))
        prepared = studies[min(TRIALS_OF_LENGTHS, max(studies))]
        for seconds in LENGTHS:
            for gpus in GPUS:
                found["lengths"].append(describe(run(prepared, gpus, seconds), seconds=seconds, gpus=gpus))
        for spot_loss in LOSSES:
            for seconds in (600, 3600):
                point = describe(run(prepared, 64, seconds, spot_loss), seconds=seconds, spot_loss=spot_loss)
                found["losses"].append(point)
    return found


def describe(outcome: Outcome, **of: float) -> dict[str, Any]:
    """Return a point of a figure."""
    print(json.dumps(of), flush=True)
    facts = {"makespan": outcome.makespan, "utilisation": outcome.utilisation, "driver_busy": outcome.driver_busy}
    facts |= {"behind": outcome.tracking_behind, "lost": outcome.lost, "useful": outcome.useful}
    facts["failed"] = outcome.failed
    return of | facts | {"attempts_lost": outcome.attempts_lost, "gpu_hours": outcome.gpu_hours}


def draw(found: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """Write the two figures."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "robustsweep", "font.size": 11, "axes.spines.top": False}
    mpl.rcParams |= {"axes.spines.right": False, "axes.grid": True, "grid.color": "#e9edf1"}
    trials = sorted({point["trials"] for point in found["trials"]})
    curves = [(f"{number:,} trials", _select(found["trials"], "trials", number)) for number in trials]
    _draw(folder / "scaling-time.svg", curves, lambda point: point["makespan"] / 3600, "hours until the last trial")
    lengths = sorted({point["seconds"] for point in found["lengths"]})
    curves = [(f"{seconds} s a trial", _select(found["lengths"], "seconds", seconds)) for seconds in lengths]
    _draw(folder / "scaling-use.svg", curves, lambda point: 100 * point["utilisation"], "% of slot time that counts")


def _select(points: Sequence[dict[str, Any]], key: str, value: float) -> list[dict[str, Any]]:
    return [point for point in points if point[key] == value]


def _draw(path: Path, curves: Sequence[tuple[str, list[dict[str, Any]]]], read: Any, label: str) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    for (name, points), colour in zip(curves, PALETTE, strict=False):
        x, y = [point["gpus"] for point in points], [read(point) for point in points]
        axes.plot(x, y, "o-", color=colour, markersize=4)
        is_crowded = "hours" not in label and points is curves[-1][1]  # at the upper edge, close to the one below
        axes.annotate(f" {name}", (x[-1], y[-1]), color=colour, va="bottom" if is_crowded else "center")
    axes.set_xscale("log", base=2)
    axes.set_xticks(GPUS, [str(gpus) for gpus in GPUS])
    axes.set_xlim(0.9, 512 * 4.5)
    if "hours" in label:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 105)
    axes.set_xlabel("GPUs, a trial on each")
    axes.set_ylabel(label)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def tabulate(found: dict[str, list[dict[str, Any]]]) -> str:
    """Return the three tables in Markdown."""
    columns = [gpus for gpus in GPUS if gpus in (1, 8, 64, 128, 256, 512)]
    lines = [_row("trials", *columns), _row(*["---"] * (len(columns) + 1))]
    for number in sorted({point["trials"] for point in found["trials"]}):
        points = {point["gpus"]: point for point in _select(found["trials"], "trials", number)}
        cells = [format_duration(points[gpus]["makespan"]) if gpus in points else "" for gpus in columns]
        lines.append(_row(f"{number:,}", *cells))
    lines += ["", _row("seconds of a trial", *columns), _row(*["---"] * (len(columns) + 1))]
    for seconds in sorted({point["seconds"] for point in found["lengths"]}):
        points = {point["gpus"]: point for point in _select(found["lengths"], "seconds", seconds)}
        cells = [f"{points[gpus]['utilisation']:.0%}, {points[gpus]['driver_busy']:.0%}" for gpus in columns]
        lines.append(_row(seconds, *cells))
    heads = ["losses per node and hour", "seconds of a trial", "attempts lost", "trials lost too often"]
    heads += ["lost work", "time", "GPU-hours"]
    lines += ["", _row(*heads), _row(*["---"] * len(heads))]
    for point in found["losses"]:
        share = point["lost"] / point["useful"]
        cells = (point["attempts_lost"], point["failed"], f"{share:.2%}", format_duration(point["makespan"]))
        lines.append(_row(point["spot_loss"], point["seconds"], *cells, f"{point['gpu_hours']:,.0f}"))
    return "\n".join(lines)


def _row(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Simulate, print the tables and, with ``--write``, draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=TRIALS[-1], help="most trials of a study")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    found = measure(asked.most)
    print(tabulate(found))
    if asked.write:
        draw(found, ROOT / "docs" / "images")


if __name__ == "__main__":
    main()
