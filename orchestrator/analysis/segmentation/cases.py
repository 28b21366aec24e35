"""Cases of one trained segmentation: what it predicted on every test image, worst first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from orchestrator.analysis.results import Results
from orchestrator.ledger.ledger import Ledger
from trainables.config import read_trial_config
from trainables.evaluation.segmentation.judged import measure_dice
from trainables.evaluation.segmentation.stored import SegmentedSet, load_segmented, locate_segmented


@dataclass(frozen=True)
class Cases:
    """Stored cases of one trial on its test images, and those of external sets."""

    signature: str
    replicate: int
    sets: tuple[SegmentedSet, ...]
    #: Names of the data sets that ``sources`` of the sets count through; empty for a single one.
    data_sets: tuple[str, ...] = ()

    def list_parts(self) -> list[tuple[str, SegmentedSet, Bool[np.ndarray, " n"]]]:
        """Return name, set and images of every data set of the test images, or of every set where there is one."""
        parts: list[tuple[str, SegmentedSet, Bool[np.ndarray, " n"]]] = []
        for stored in self.sets:
            if len(self.data_sets) < 2:
                parts.append((stored.name, stored, np.ones(len(stored.ids), dtype=np.bool_)))
                continue
            parts += [
                (self.data_sets[index], stored, stored.sources == index) for index in np.unique(stored.sources).tolist()
            ]
        return parts


@dataclass(frozen=True)
class Case:
    """One image with its truth and prediction."""

    identifier: str
    set_name: str
    #: Mean over the classes that the image or its prediction has.
    dice: float
    image: np.ndarray
    target: np.ndarray
    predicted: np.ndarray
    entropy: np.ndarray


def load_cases(results: Results, ledger: Ledger, arm: str) -> Cases | None:
    """Return the cases of an arm's first complete replicate, None if it has none or is no segmentation.

    Raises:
        StorageError: a file of the ledger is damaged.
    """
    rows = results.complete[results.complete["name"] == arm].sort_values("replicate")
    if rows.empty:
        return None
    signature = str(rows["signature"].iloc[0])
    folder = ledger.folder("trial", signature)
    result = results.records[signature].result
    known = [] if result is None else list(result["files"])
    names = [name for name in ("test", *results.external_sets) if locate_segmented(name) in known]
    if not names:
        return None
    data_sets = tuple(results.records[signature].config["config"]["data"].get("datasets", ()))
    stored = tuple(load_segmented(folder, name) for name in names)
    return Cases(signature, int(rows["replicate"].iloc[0]), stored, data_sets)


def find_worst(results: Results, cases: Cases, cache_dir: Path, *, number: int) -> list[Case]:
    """Return the cases with the lowest Dice of all sets together, worst first.

    Args:
        results: tables of the study.
        cases: stored cases.
        cache_dir: folder of this node's decoded images.
        number: how many at most.

    Raises:
        RobustSweepError: the images cannot be had on this machine.
    """
    from trainables.data.load import load_dataset

    config = read_trial_config(results.records[cases.signature].config["config"])
    data = load_dataset(config.data, cache_dir=cache_dir)
    images = {"test": data.splits["test"], **data.external}
    listed = [(float(dice), stored, row) for stored in cases.sets for row, dice in enumerate(measure_dice(stored))]
    worst = sorted((each for each in listed if not np.isnan(each[0])), key=lambda each: each[0])[:number]
    found: list[Case] = []
    for dice, stored, row in worst:
        of = images[stored.name]
        assert of.targets is not None
        assert stored.predicted is not None
        assert stored.entropy is not None
        found.append(
            Case(
                identifier=str(stored.ids[row]),
                set_name=str(of.sites[row]) or stored.name,
                dice=dice,
                image=np.asarray(of.images[row]),
                target=np.asarray(of.targets[row]),
                predicted=stored.predicted[row],
                entropy=stored.entropy[row],
            )
        )
    return found
