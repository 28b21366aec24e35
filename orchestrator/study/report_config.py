"""The ``report`` section of a study file: reference, families of shifts and notes, checked when the file is read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from orchestrator.study.data_sets import find_counterpart, group_by_data_set
from orchestrator.study.grid import Arm, Grid, When, find_label, read_match
from orchestrator.study.hypotheses import Families
from orchestrator.study.problems import list_options
from orchestrator.study.yaml_source import Key, Source
from trainables.errors import DataError
from trainables.evaluation.balanced import load_reference
from trainables.evaluation.families import normalise_member
from trainables.frozen import Frozen
from trainables.pretraining_config import TrainedStep
from trainables.shifts.tables import ENTRY_POINTS, GENERAL, OTHER, load_aliases, load_tables, registered_names

_ARM: Key = ("report", "reference", "arm")
_TABLE: Key = ("report", "reference", "table")
_SEVERITIES: Key = ("evaluation", "severities")
_MATCHING: Key = ("evaluation", "matching")
_FAMILIES: Key = ("report", "families")


class Reference(Frozen):
    """Reference whose errors are 1 in BE and rBE: an arm of the study, or a table."""

    arm: str | When | None = Field(None, description="Name of an arm, or levels that only one arm has.")
    table: Path | None = Field(
        None, description="CSV with shift, error and perhaps severity, or MedMNIST-C's JSON; from the study file."
    )

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.arm is None) == (self.table is None):
            raise ValueError(f"found {'neither' if self.arm is None else 'both'}, expected arm or table")
        return self


class ReportConfig(Frozen):
    """Settings of the report. No trial depends on them, so they are never part of a signature."""

    reference: Reference | None = Field(None, description="Of BE and rBE; null: the first arm.")
    families: Families = Field(
        {}, description="Family → its shifts; shifts that none lists are in their default family, or in other."
    )
    notes: str = Field(
        "",
        description="What was seen, decided or went wrong, in plain text, for the report; an empty line begins a "
        "paragraph.",
    )


def make_table_absolute(tree: Source, folder: Path | str) -> None:
    """Make the path of the reference table absolute, in place.

    A relative path starts at the study file's folder, in an override at the working directory.
    """
    section = _find_reference(tree)
    path = section.get("table") if section is not None else None
    if section is None or not isinstance(path, str):
        return
    start = "." if isinstance(tree.place(_TABLE), str) else folder
    try:
        section["table"] = os.path.abspath(Path(start) / Path(path).expanduser())
    except RuntimeError as error:  # ~nobody/…
        tree.report(_TABLE, f"found {path!r}: {error}")


def check_report(tree: Source, grid: Grid, arms: Sequence[Arm]) -> None:
    """Report a reference that does not select exactly one arm, a table that cannot be used, and unclear families."""
    _check_families(tree)
    section = _find_reference(tree)
    if section is None:
        return
    table, wanted = section.get("table"), section.get("arm")
    if isinstance(table, str):
        try:
            load_reference(Path(table))
        except DataError as error:
            tree.report(_TABLE, str(error))
    if not arms or not grid.is_complete:
        return
    names = [arm.name for arm in arms]
    data_sets = group_by_data_set(arms)
    if isinstance(table, str) and len(data_sets) > 1:
        tree.report(_TABLE, f"found {len(data_sets)} data sets, and a table is of one; expected arm: its levels")
    if isinstance(wanted, str) and wanted not in names:
        tree.report(_ARM, f"there is no arm {wanted!r}{list_options(wanted, names)}")
    elif isinstance(wanted, str):
        for label in [label for label, arm in _find_arms(wanted, data_sets).items() if arm is None]:
            tree.report(_ARM, f"several arms on {label} are like {wanted!r}; give the levels that one arm of each has")
    elif isinstance(wanted, Mapping) and wanted:
        _check_levels(wanted, tree, grid, arms)


def _check_families(tree: Source) -> None:
    """Report families of shifts with reserved names, unknown shifts, and shifts that two families list."""
    report, hypotheses = tree.value.get("report"), tree.value.get("hypotheses")
    families = {_FAMILIES: report.get("families") if isinstance(report, Mapping) else None}
    for index, entry in enumerate(hypotheses if isinstance(hypotheses, list) else ()):
        if isinstance(entry, Mapping) and entry.get("families") != families[_FAMILIES]:
            families["hypotheses", index, "families"] = entry.get("families")
    own = set(_iterate_own_shifts({key: tree.value.get(key) for key in ("evaluation", "factors", "conditions")}))
    packaged = {*registered_names, *(point.name for point in metadata.entry_points(group=ENTRY_POINTS))}
    shifts = [*load_tables()[GENERAL], *load_aliases(), "stain-grid", *sorted(own | packaged)]
    for key, found in families.items():
        if isinstance(found, Mapping):
            _check_members(found, shifts, partial(_report_below, tree, key))


def _report_below(tree: Source, key: Key, text: str, *below: str | int) -> None:
    tree.report((*key, *below), text)


def _check_members(families: Mapping[str, Any], shifts: list[str], report: Callable[..., None]) -> None:
    seen: dict[str, str] = {}
    for family, listed in families.items():
        if family in (OTHER, "mean") or family in shifts:
            report(f"found the family {family!r}, expected another name: this one is taken", family)
        for index, shift in enumerate(listed if isinstance(listed, list) else ()):
            if not isinstance(shift, str) or (shift not in shifts and "_then_" not in shift):
                report(f"there is no shift {shift!r}{list_options(str(shift), shifts)}", family, index)
            elif (first := seen.setdefault(normalise_member(shift), family)) != family:
                report(f"{shift} is in {first} and in {family}; every shift is in one family", family, index)


def _iterate_own_shifts(node: Any) -> Iterator[str]:
    """Yield the names of the shifts that the study defines anywhere, also in factors and conditions."""
    if isinstance(node, Mapping):
        if "name" in node and not {"op", "compose"}.isdisjoint(node):
            yield str(node["name"])
        node = list(node.values())
    for inner in node if isinstance(node, list) else ():
        yield from _iterate_own_shifts(inner)


def _check_levels(wanted: Mapping[str, Any], tree: Source, grid: Grid, arms: Sequence[Arm]) -> None:
    raw = tree.value.get("factors")
    match = read_match(wanted, _ARM, raw if isinstance(raw, Mapping) else {}, grid.factors, tree.report)
    if match is None:
        return
    data_sets = group_by_data_set(arms)
    for label, candidates in data_sets.items():
        found = [a.name for a in candidates if all(a.levels[factor] in labels for factor, labels in match.items())]
        if len(found) == 1:
            continue
        on = f" on {label}" * (len(data_sets) > 1)
        listed = f": {'; '.join(found[:4])}{'; …' if len(found) > 4 else ''}" if found else ""
        tree.report(_ARM, f"found {len(found)} arms with these levels{on}{listed}, expected one")


def _find_reference(tree: Source) -> dict[str, Any] | None:
    report = tree.value.get("report")
    reference = report.get("reference") if isinstance(report, dict) else None
    return reference if isinstance(reference, dict) else None


def describe_reference(config: ReportConfig, arms: Sequence[Arm]) -> dict[str, Any] | None:
    """Return the reference as stored in ``plan.json``: ``{"arm": name}``, the table's name and content, or None.

    With several data sets it is ``{"arms": {data set: name}}``: every data set has its own.

    Raises:
        DataError: if the table can no longer be read.
    """
    reference = config.reference
    if reference is None:
        return None
    if reference.table is not None:
        return {"table": reference.table.name} | load_reference(reference.table).as_json()
    found = _find_arms(reference.arm or {}, group_by_data_set(arms))
    names = {label: arm.name for label, arm in found.items() if arm is not None}
    return {"arms": names} if len(names) > 1 else {"arm": next(iter(names.values()))}


def _find_arms(wanted: str | Mapping[str, Any], data_sets: Mapping[str, Sequence[Arm]]) -> dict[str, Arm | None]:
    """Return data set → its reference arm: that of the name, or most like it, or with the levels; None if unclear."""
    if not isinstance(wanted, str):
        return {
            label: next((arm for arm in arms if _has_levels(arm, wanted)), None) for label, arms in data_sets.items()
        }
    named = next(arm for arms in data_sets.values() for arm in arms if arm.name == wanted)
    return {
        label: named if any(arm.name == wanted for arm in arms) else find_counterpart(named, arms)
        for label, arms in data_sets.items()
    }


def find_matching_references(report: ReportConfig, arms: Sequence[Arm]) -> dict[str, Arm]:
    """Return name of each arm with ``severities: matched`` → the arm on which its severities are matched.

    That is, on the same data set, the arm with the levels of ``evaluation.matching.reference``, else that of
    ``report.reference``, else the first.
    """
    reference = report.reference
    stated = None if reference is None or reference.table is not None else describe_reference(report, arms)
    named = set() if stated is None else {*stated.get("arms", {}).values(), stated.get("arm")}
    found = {}
    for group in group_by_data_set(arms).values():
        default = next((arm for arm in group if arm.name in named), group[0])
        for arm in group:
            wanted = arm.config.evaluation.matching.reference
            chosen = default if wanted is None else next((each for each in group if _has_levels(each, wanted)), None)
            if arm.config.evaluation.is_matched and chosen is not None:
                found[arm.name] = chosen
    return found


def check_matching(tree: Source, report: ReportConfig, arms: Sequence[Arm], *, has_search: bool) -> None:
    """Report matched severities whose reference is no single arm, or cannot be trained before the others."""
    matched = [arm for arm in arms if arm.config.evaluation.is_matched]
    if not matched:
        return
    if has_search:
        tree.report(_SEVERITIES, "found matched, which does not go with search: its arms are not known beforehand")
    if report.reference is not None and report.reference.table is not None:
        tree.report(_SEVERITIES, "found matched, and report.reference.table has errors at published strengths")
    if any(arm.config.data.split == "per_replicate" for arm in matched):
        text = "validation images of one replicate are test images of another"
        tree.report(_SEVERITIES, f"found matched with data.split: per_replicate: {text}")
    if not _check_matching_levels(tree, arms, matched):
        return
    for reference in {arm.name: arm for arm in find_matching_references(report, arms).values()}.values():
        training = reference.config.training
        if isinstance(reference.config.pretraining, TrainedStep):
            problem = "starts from a stage; expected an arm that starts from none"
        elif "/" in training.select_by and (training.select == "best" or training.patience is not None):
            problem = "chooses its epoch on shifted validation images, whose strengths are not known before it"
        else:
            continue
        tree.report(_SEVERITIES, f"found matched on the arm {reference.name!r}, which {problem} (evaluation.matching)")


def _check_matching_levels(tree: Source, arms: Sequence[Arm], matched: Sequence[Arm]) -> bool:
    """Return whether each stated reference is one arm of every data set; report the first that is not."""
    for wanted in {json.dumps(arm.config.evaluation.matching.reference) for arm in matched} - {"null"}:
        levels = json.loads(wanted)
        unknown = [factor for factor in levels if factor not in arms[0].levels]
        for group in group_by_data_set(arms).values():
            number = 0 if unknown else sum(_has_levels(arm, levels) for arm in group)
            if number != 1:
                tree.report((*_MATCHING, "reference"), f"found {number} arms with these levels, expected one")
                return False
    return True


def _has_levels(arm: Arm, wanted: Mapping[str, Any]) -> bool:
    return all(
        arm.levels[factor] in {find_label(label, [arm.levels[factor]]) for label in listed}
        for factor, listed in ((f, w if isinstance(w, list) else [w]) for f, w in wanted.items())
    )
