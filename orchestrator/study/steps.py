"""Chains of initialisation that a study file writes as a list; they are nested before anything else reads them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.study.grid import Arm, Grid
from orchestrator.study.yaml_source import Key, Source
from trainables.pretraining_config import list_trained, nest_steps, uses_study_data

#: Section that is a chain.
CHAIN = "pretraining"


def nest_chains(tree: Source) -> None:
    """Nest the chains of a study file in place: of the base, of levels and of conditions; problems are added to it."""
    for key in [key for key in _find_places(tree.value) if isinstance(_get(tree.value, key), list)]:
        *parents, name = key
        node = _get(tree.value, tuple(parents))
        try:
            node[name] = nest_steps(node[name])
        except ValueError as error:
            tree.report(key, str(error))
            node[name] = {"kind": "scratch"}  # the problem is reported once


def _find_places(tree: Mapping[str, Any]) -> Iterator[Key]:
    """Yield the keys at which a chain may stand."""
    yield (CHAIN,)
    factors = tree.get("factors")
    for factor, levels in factors.items() if isinstance(factors, Mapping) else ():
        for label, level in levels.items() if isinstance(levels, Mapping) else ():
            if factor == CHAIN:
                yield ("factors", factor, label)
            elif isinstance(level, Mapping) and CHAIN in level:
                yield ("factors", factor, label, CHAIN)
    conditions = tree.get("conditions")
    for index, condition in enumerate(conditions if isinstance(conditions, list) else ()):
        if isinstance(condition, Mapping) and isinstance(condition.get("set"), Mapping):
            yield ("conditions", index, "set", CHAIN)


def _get(tree: Any, key: Key) -> Any:
    for part in key:
        tree = tree.get(part) if isinstance(tree, Mapping) else tree[part]
    return tree


def find_files(value: Any, key: Key, names: frozenset[str]) -> Iterator[tuple[Key, str]]:
    """Yield key and value of every path in a part of a chain that is set as a whole.

    Args:
        value: sources of images, or a step.
        key: its key in the study file.
        names: names of the fields that are paths.
    """
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        if name in names and isinstance(inner, str):
            yield (*key, name), inner
        else:
            yield from find_files(inner, (*key, name), names)


def check_encoders(tree: Source, grid: Grid, arms: Sequence[Arm], replicates: Sequence[int]) -> None:
    """Report numbers of encoders that the replicates, their splits, or the next steps cannot use.

    Args:
        tree: the study file.
        grid: its grid.
        arms: its arms.
        replicates: number of replicates of each arm; that of the study if there are no arms.
    """
    shared = []
    for arm, own in zip(arms, replicates, strict=False):
        steps = list_trained(arm.config.pretraining)
        numbers = [own if step.encoders == "per_replicate" else step.encoders for step in steps]
        seen = [number for step, number in zip(steps, numbers, strict=True) if uses_study_data(step)]
        if arm.config.data.split == "per_replicate" and min(seen, default=own) < own:
            shared.append(arm.name)
        for earlier, later in itertools.pairwise(numbers):
            if earlier > later:
                tree.report(
                    ("pretraining", "encoders"),
                    f"found {earlier} encoders of a step before one with {later} (arm {arm.name}), which starts from "
                    f"{later} of them; expected at most as many as the step after it has",
                )
    if shared:
        tree.report(
            ("pretraining", "encoders"),
            "expected per_replicate with data.split: per_replicate, because an encoder that replicates share has seen "
            f"test images of theirs (arm {shared[0]}{f' and {len(shared) - 1} more' if shared[1:] else ''})",
        )
    most = max(replicates)
    for assignment in grid.assignments():
        number = assignment.value
        if assignment.path == ("pretraining", "encoders") and isinstance(number, int) and number > most:
            tree.report(
                assignment.source,
                f"found {number} encoders for {most:,} replicate(s), expected at most as many: no trial "
                "would start from the others; raise replicates, or say per_replicate",
            )
