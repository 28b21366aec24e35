"""Packed evaluations of thousands of trials; as dicts they would be a million objects and a gigabyte."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

#: Fields of an evaluation besides its metrics.
ABOUT = ("set", "shift", "severity", "strength", "num_images")

_ABOUT = itemgetter(*ABOUT)
_Rows = tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of one trial, in the order of its result."""

    #: One row of ``ABOUT`` per evaluation. Trials with equal rows share one object.
    about: _Rows
    #: Names of the columns of ``values``.
    metrics: tuple[str, ...]
    #: Values, evaluations × metrics; NaN where an evaluation lacks a metric.
    values: NDArray[np.float64]
    #: Metrics on unshifted in-distribution validation: the only ones that may choose an arm.
    validation: Mapping[str, float]


class Packer:
    """Packer of evaluations, one trial at a time. Rows that trials share are stored once."""

    def __init__(self) -> None:
        self._seen: dict[_Rows, _Rows] = {}

    def pack(self, evaluations: Sequence[dict[str, Any]]) -> Evaluations:
        """Return the packed ``evaluations`` of a ``result.json``.

        A strength of several numbers becomes JSON text, in the argument too.
        """
        for row in evaluations:
            if isinstance(row["strength"], list | dict):
                row["strength"] = json.dumps(row["strength"])
        about = tuple(map(_ABOUT, evaluations))
        values = [row["metrics"] for row in evaluations]
        metrics = tuple(dict.fromkeys(itertools.chain.from_iterable(values)))
        found = next((row for row in evaluations if row["set"] == "val" and row["severity"] == 0), None)
        return Evaluations(
            about=self._seen.setdefault(about, about),
            metrics=metrics,
            values=np.array([tuple(map(row.get, metrics)) for row in values], dtype=np.float64),
            validation={} if found is None else dict(sorted(found["metrics"].items())),
        )


def evaluations_table(keys: pd.DataFrame, packed: Sequence[Evaluations]) -> pd.DataFrame:
    """Return one row per evaluation: the trial's row of ``keys``, then ``ABOUT``, then the metrics.

    Args:
        keys: one row per trial.
        packed: evaluations of each trial, in the same order; at least one trial.
    """
    counts = [len(each.about) for each in packed]
    of_trial = keys.take(np.repeat(np.arange(len(keys)), counts)).reset_index(drop=True)
    names = tuple(dict.fromkeys(itertools.chain.from_iterable(each.metrics for each in packed)))
    values = pd.DataFrame(np.concatenate([_align(each, names) for each in packed]), columns=list(names))
    return pd.concat([of_trial, _about_table([each.about for each in packed]), values], axis=1)


def _about_table(about: Sequence[_Rows]) -> pd.DataFrame:
    """Return the rows of ``about`` as one table. Shared objects are converted once."""
    different = {id(rows): rows for rows in about}
    starts = dict(zip(different, np.cumsum([0, *map(len, different.values())]).tolist(), strict=False))
    table = pd.DataFrame(list(itertools.chain.from_iterable(different.values())), columns=list(ABOUT))
    places = [np.arange(len(rows)) + starts[id(rows)] for rows in about]
    return table.take(np.concatenate(places)).reset_index(drop=True)


def _align(packed: Evaluations, names: tuple[str, ...]) -> NDArray[np.float64]:
    """Return the values with the columns ``names``, NaN for metrics that the trial lacks."""
    if packed.metrics == names:
        return packed.values
    aligned = np.full((len(packed.about), len(names)), np.nan)
    aligned[:, [names.index(name) for name in packed.metrics]] = packed.values
    return aligned
