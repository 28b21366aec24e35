"""Claims of outperformance in reported results: one CSV row per method, with its mean and the number of test cases.

Every comparison is between the method that is claimed to be better and one of the others, on the same test cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pandas as pd
from pydantic import Field, ValidationError, model_validator

from orchestrator.analysis.tidy.sheets import Row, describe_problems, read_settings, read_sheet
from orchestrator.analysis.tidy.tables import Table
from orchestrator.statistics.outperformance import (
    bound_both_right,
    bound_correlation,
    false_claim_of_means,
    false_claim_of_shares,
    find_both_right,
)
from orchestrator.study.problems import explain, list_options
from orchestrator.study.yaml_source import Key, Source
from trainables.errors import StudyError
from trainables.frozen import Frozen

Column = Annotated[str, Field(min_length=1)]
Correlation = Annotated[float, Field(ge=-1, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class ReportedConfig(Frozen):
    """Roles of the columns of reported results, and what is assumed of the methods."""

    method: Column = Field(description="column of the method")
    mean: Column = Field(description="column of the reported mean")
    n: Column | Annotated[int, Field(ge=1)] = Field(description="number of test cases, or its column")
    sd: Column | None = Field(
        None,
        description="Column of the standard deviation over test cases; null: the mean is a share of right cases.",
    )
    better: Literal["higher", "lower"] = Field("higher", description="higher or lower, whichever is better.")
    claimed: str | None = Field(
        None, description="Method that is claimed to be better; null: the best of each comparison."
    )
    by: list[Column] = Field([], description="Columns each combination of which is compared by itself, e.g. data set.")
    correlation: Column | Correlation | list[Correlation] | None = Field(
        None, description="Correlation of two methods' scores over cases: a number, several, or a column."
    )
    congruence: Column | Share | list[Share] | None = Field(
        None, description="Without sd: share of cases that both methods get right: a number, several, or a column."
    )
    percent: bool = Field(False, description="Whether means and standard deviations are in percent.")
    threshold: float = Field(0.05, gt=0, lt=1, description="Largest probability of a false claim that is tolerated.")

    @property
    def assumed(self) -> Literal["correlation", "congruence"]:
        """The quantity that says how alike two methods are."""
        return "correlation" if self.correlation is not None else "congruence"

    @property
    def columns(self) -> dict[Key, str]:
        """Key of the configuration → column that it names."""
        named: dict[Key, Any] = {
            ("reported", field): getattr(self, field) for field in ("method", "mean", "n", "sd", self.assumed)
        }
        named |= {("reported", "by", index): column for index, column in enumerate(self.by)}
        return {key: column for key, column in named.items() if isinstance(column, str)}

    @model_validator(mode="after")
    def _assumes_one(self) -> Self:
        if (self.correlation is None) == (self.congruence is None):
            raise ValueError("expected either correlation or congruence: how alike are two methods, case by case?")
        if self.congruence is not None and self.sd is not None:
            raise ValueError("found congruence and sd; congruence is a share of right cases, with sd give correlation")
        return self


class _File(Frozen):
    reported: ReportedConfig = Field(description="which column is what, and how alike methods are")


@dataclass(frozen=True)
class Report:
    """Reported result of one method."""

    row: Row
    method: str
    mean: float
    num_cases: int
    sd: float | None
    #: Its likeness to the claimed method, if a column has it.
    likeness: float | None


def is_reported(config: Path | str) -> bool:
    """Return whether a configuration is one of reported results."""
    tree = read_settings(config)
    return isinstance(tree.value, dict) and "reported" in tree.value


def load_reported(
    tables: Sequence[Path | str], config: Path | str
) -> tuple[ReportedConfig, dict[tuple[str, ...], list[Report]]]:
    """Return the configuration, and levels of ``by`` → what is reported there, the claimed method first.

    Raises:
        StudyError: a file cannot be read or is wrong; the message names every problem with its line.
    """
    tree, read = read_settings(config), [read_sheet(table) for table in tables]
    sheets = [sheet for sheet, _ in read]
    groups: dict[tuple[str, ...], list[Report]] = {}
    parsed = _validate(tree)
    for key, column in parsed.columns.items() if parsed is not None else ():
        for sheet, rows in read:
            if rows and column not in rows[0].cells:
                known = list(rows[0].cells)
                tree.report(key, f"{sheet.name} has no column {column!r}{list_options(column, known)}")
    if parsed is not None and not any(source.problems for source in (tree, *sheets)):
        for row in (row for _, rows in read for row in rows):
            groups.setdefault(tuple(row.text(column) for column in parsed.by), []).append(_read(row, parsed))
        groups = {levels: _order(group, parsed) for levels, group in groups.items()}
    if parsed is None or any(source.problems for source in (tree, *sheets)):
        names = ", ".join(map(str, tables))
        raise StudyError(describe_problems([tree, *sheets], f"read the reported results {names} as {config} says"))
    return parsed, groups


def _validate(tree: Source) -> ReportedConfig | None:
    try:
        return _File.model_validate(tree.value).reported
    except ValidationError as error:
        for key, _, text in explain(error, _File, tree.value):
            tree.report(key, text)
    return None


def _read(row: Row, config: ReportedConfig) -> Report:
    scale = 100.0 if config.percent else 1.0
    mean, num_cases = _required(row, config.mean) / scale, _number_of_cases(row, config)
    if config.sd is None and not 0 <= mean <= 1:
        row.report(
            config.mean, f"found {mean * scale:g}, expected a share of cases from 0 to {scale:g}; see sd, percent"
        )
    sd = None if config.sd is None else _required(row, config.sd) / scale
    if sd is not None and sd < 0:
        row.report(str(config.sd), f"found {sd * scale:g}, expected a standard deviation of 0 or more")
    said = getattr(config, config.assumed)
    likeness = row.number(said) if isinstance(said, str) else None
    if likeness is not None and not (-1 <= likeness <= 1 or math.isnan(likeness)):
        row.report(str(said), f"found {likeness:g}, expected a number from −1 to 1")
    return Report(row, row.text(config.method), mean, num_cases, sd, likeness)


def _required(row: Row, column: str) -> float:
    value = row.number(column)
    if math.isnan(value):
        row.report(column, "found nothing, expected a number")
    return value


def _number_of_cases(row: Row, config: ReportedConfig) -> int:
    if isinstance(config.n, int):
        return config.n
    value, smallest = _required(row, config.n), 1 if config.sd is None else 2
    if math.isfinite(value) and (value < smallest or value != int(value)):
        row.report(config.n, f"found {value:g}, expected a whole number of test cases, {smallest} or more")
    return int(value) if math.isfinite(value) else 0


def _order(group: list[Report], config: ReportedConfig) -> list[Report]:
    """Return the reports with the claimed one first, and report what makes them incomparable."""
    first, seen = group[0], dict[str, Report]()
    for each in group:
        before = seen.setdefault(each.method, each)
        if before is not each:
            where = each.row.place(before.row)
            each.row.report(config.method, f"found {each.method!r} a second time, first in {where}; see by")
        if each.num_cases != first.num_cases:
            found = f"found {each.num_cases} test cases, expected {first.num_cases} as in {each.row.place(first.row)}"
            each.row.report(str(config.n), f"{found}: methods are compared on the same cases")
    sign = 1 if config.better == "higher" else -1
    claimed = max(group, key=lambda each: sign * each.mean) if config.claimed is None else seen.get(config.claimed)
    if claimed is None:
        text = f"no row has the claimed method {config.claimed!r}{list_options(str(config.claimed), list(seen))}"
        first.row.report(config.method, text)
        return group
    for each in group:
        if each is not claimed and each.likeness is not None and math.isnan(each.likeness):
            each.row.report(str(getattr(config, config.assumed)), f"found nothing, expected its {config.assumed}")
    return [claimed, *(each for each in group if each is not claimed)]


def compute_reported(config: ReportedConfig, groups: dict[tuple[str, ...], list[Report]]) -> Table:
    """Return the table of the probabilities that claims of outperformance are false, one row per comparison."""
    rows = []
    said = getattr(config, config.assumed)
    for levels, (claimed, *others) in groups.items():
        for other in others:
            options: list[Any] = said if isinstance(said, list) else [other.likeness if isinstance(said, str) else said]
            about = dict(zip(config.by, levels, strict=True)) | {"claimed": claimed.method, "against": other.method}
            rows += [about | _compare(config, claimed, other, float(likeness)) for likeness in options]
    alike = "their correlation of being right" if config.sd is None else "the correlation of their scores"
    alike = "the share of cases that both get right" if config.assumed == "congruence" else alike
    caption = (
        "Probability that the claimed method is not the better one, given what is reported, if both were tested on the "
        f"same n independent cases, and if {alike} is as assumed (closed form of Christodoulou et al. 2025, arXiv "
        "2505.04720). It is about these trained models; what a second training of a method would give is not in it."
    )
    return Table("outperformance", caption, pd.DataFrame(rows), 2 + len(config.by))


def _compare(config: ReportedConfig, claimed: Report, other: Report, likeness: float) -> dict[str, Any]:
    scale = 100.0 if config.percent else 1.0
    difference = claimed.mean - other.mean
    row: dict[str, Any] = {"mean, claimed": claimed.mean * scale, "mean, other": other.mean * scale}
    row |= {"difference": difference * scale, "n": claimed.num_cases, config.assumed: likeness}
    p: float | None
    if config.sd is not None:
        assert claimed.sd is not None
        assert other.sd is not None
        gain = difference if config.better == "higher" else -difference
        note, p = "", false_claim_of_means(gain, claimed.sd, other.sd, claimed.num_cases, correlation=likeness)
    else:
        p, note = _compare_shares(config, claimed, other, likeness)
    is_low = "" if p is None else "yes" if p <= config.threshold else "no"
    return row | {"probability of a false claim": p, f"at most {config.threshold:g}": is_low, "note": note}


def _compare_shares(
    config: ReportedConfig, claimed: Report, other: Report, likeness: float
) -> tuple[float | None, str]:
    """Return the probability of a false claim, or None and the reason why no results can be so."""
    first, second = (claimed.mean, other.mean) if config.better == "higher" else (1 - claimed.mean, 1 - other.mean)
    is_share = config.assumed == "congruence"
    bounds = bound_both_right(first, second) if is_share else bound_correlation(first, second)
    if bounds is None:
        return None, "a method that is always or never right has no correlation; give congruence"
    low, high = bounds
    if not low - 1e-9 <= likeness <= high + 1e-9:
        return None, f"with these means it is from {low:.3f} to {high:.3f}"
    both_right = likeness if is_share else find_both_right(first, second, likeness)
    return false_claim_of_shares(first, second, claimed.num_cases, both_right=both_right), ""
