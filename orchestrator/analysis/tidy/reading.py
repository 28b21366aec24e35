"""Reader of results from elsewhere: tidy tables and a small YAML file that describes their columns.

A row of a table is one evaluation of one trained model: its condition (a column per factor), its seed, the shift and
severity it was evaluated under, and its metrics.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pandas as pd
from pydantic import Field, ValidationError, model_validator

from orchestrator.analysis.tidy.results import SEED, SEVERITY, SHIFT, TidyResults, find_measures, list_measures
from orchestrator.analysis.tidy.sheets import Row, describe_problems, read_settings, read_sheet
from orchestrator.statistics.power import Test
from orchestrator.study.grid import find_label
from orchestrator.study.hypotheses import HypothesisConfig, expand_kinds
from orchestrator.study.problems import explain, list_options
from orchestrator.study.yaml_source import Key, Source, format_key
from trainables.errors import StudyError
from trainables.frozen import Frozen, Seed

Column = Annotated[str, Field(min_length=1)]


class ColumnsConfig(Frozen):
    """Roles of the table's columns."""

    factors: list[Column] = Field(description="one column per factor; with a single column of conditions, that one")
    file: Column | None = Field(None, description="Name of one more factor: its level is the file's name, no ending.")
    seed: Column | None = Field(
        description="column of the seed, or replicate, that all conditions share; null: one trained model per condition"
    )
    shift: Column | None = Field(None, description="Column of the kind of shift; null: nothing was shifted.")
    severity: Column | None = Field(None, description="Column of the severity, a number; 0 is not shifted.")
    within: list[Column] = Field(
        [],
        description="Factors such as a data set or family, each level of which has shifts and severities of its own.",
    )

    @property
    def all_factors(self) -> list[str]:
        """Names of the factors, the one that is the file's name last."""
        return [*self.factors, *([] if self.file is None else [self.file])]

    @model_validator(mode="after")
    def _has_factors(self) -> Self:
        if not self.all_factors:
            raise ValueError("found no factor, expected factors or file: what is compared?")
        return self


class MetricConfig(Frozen):
    """One metric column."""

    better: Literal["higher", "lower"] = Field(description="higher or lower, whichever is better")
    smallest_effect: float | None = Field(
        None, gt=0, description="Smallest difference that matters: how many seeds would show it?"
    )
    clean: Column | None = Field(None, description="Column of the same metric, not shifted, in the rows of its model.")


class StatsConfig(Frozen):
    """Settings of ``robustsweep stats`` for one table."""

    columns: ColumnsConfig = Field(description="which column is what: factors, seed, shift, severity")
    metrics: dict[Column, MetricConfig] = Field(min_length=1, description="column: {better: higher or lower}")
    clean: str | int | float | None = Field(None, description="What the shift column says of what is not shifted.")
    reference: dict[str, str | int | float | bool] = Field(
        {}, description="Factor: level that others are compared with; otherwise the first in the table."
    )
    max_order: int = Field(2, ge=1, le=4, description="Highest number of factors in an interaction.")
    alpha: float = Field(0.05, gt=0, le=0.5, description="Error rate of a family, for the number of seeds.")
    power: float = Field(0.8, gt=0, lt=1, description="Wanted probability to find an effect that matters.")
    test: Test = Field("permutation", description="Test that the number of seeds is worked out for.")
    seed: Seed = Field(0, description="Of resampling and random sign flips.")
    hypotheses: list[HypothesisConfig] = Field([], max_length=100, description="As in a study file.")

    @property
    def directions(self) -> dict[str, str]:
        """Metric → higher or lower, whichever is better."""
        return {name: metric.better for name, metric in self.metrics.items()}


def load_tidy(tables: Sequence[Path | str], config: Path | str) -> tuple[StatsConfig, TidyResults]:
    """Return the configuration and the results in the tables, whose rows count as those of one table.

    Args:
        tables: CSV in UTF-8 with a header; the delimiter is a comma, semicolon or tab.
        config: YAML file, see ``StatsConfig``.

    Raises:
        StudyError: one of them cannot be read or is wrong; the message names every problem with its line.
    """
    tree, read = read_settings(config), [read_sheet(table) for table in tables]
    sheets, rows = [sheet for sheet, _ in read], [row for _, rows in read for row in rows]
    parsed, measured = _validate(tree), None
    _check_columns([(sheet.name, found) for sheet, found in read if found], tree)
    if rows and parsed is not None and not tree.problems:
        records = _Reader(parsed, rows).read(tree)
        if not any(source.problems for source in (tree, *sheets)):
            measured = _measure(pd.DataFrame(records), parsed, tree)
    if parsed is None or measured is None or any(source.problems for source in (tree, *sheets)):
        names = ", ".join(map(str, tables))
        raise StudyError(describe_problems([tree, *sheets], f"read the results {names} as {config} says"))
    return parsed, measured


def _validate(tree: Source) -> StatsConfig | None:
    if not isinstance(tree.value, dict):
        if not tree.problems:
            tree.report((), "found no configuration, expected a mapping with the keys columns and metrics")
        return None
    for name, better in tree.value["metrics"].items() if isinstance(tree.value.get("metrics"), dict) else ():
        if isinstance(better, str):  # accuracy: higher
            tree.value["metrics"][name] = {"better": better}
    expand_kinds(tree.value)
    try:
        return StatsConfig.model_validate(tree.value)
    except ValidationError as error:
        for key, _, text in explain(error, StatsConfig, tree.value):
            tree.report(key, text)
    return None


def _measure(frame: pd.DataFrame, config: StatsConfig, tree: Source) -> TidyResults | None:
    factors, within = config.columns.all_factors, config.columns.within
    names = list_measures(frame, list(config.metrics))
    for name in sorted({name for name in names if names.count(name) > 1} | set(factors).intersection(names)):
        tree.report(("metrics",), f"{name!r} would stand for two things; rename a shift, a metric or a factor")
    if not frame[list(config.metrics)].notna().any(axis=None):
        tree.report(("metrics",), "found no value of any metric, expected numbers")
    if tree.problems:
        return None
    measured = find_measures(frame, factors, config.reference, config.directions, within)
    measured.check(config.reference, config.hypotheses, tree)
    return measured


def _check_columns(read: Sequence[tuple[str, Sequence[Row]]], tree: Source) -> None:
    """Report columns that a table lacks and columns with two roles, also if the configuration has other problems."""
    value = tree.value if isinstance(tree.value, dict) else {}
    columns, metrics = ({} if not isinstance(value.get(key), dict) else value[key] for key in ("columns", "metrics"))
    if isinstance(columns.get("file"), str):
        _add_file_names(columns["file"], read, tree)
    factors, within = (columns[key] if isinstance(columns.get(key), list) else [] for key in ("factors", "within"))
    named: list[tuple[Key, Any]] = [
        *((("columns", "factors", index), name) for index, name in enumerate(factors)),
        *((("columns", field), columns.get(field)) for field in ("file", "seed", "shift", "severity")),
        *((("metrics", name), name) for name in metrics),
        *((("metrics", name, "clean"), each.get("clean")) for name, each in metrics.items() if isinstance(each, dict)),
    ]
    taken: dict[str, Key] = {}
    for key, name in ((key, name) for key, name in named if isinstance(name, str)):
        lacking = [(table, list(rows[0].cells)) for table, rows in read if name not in rows[0].cells]
        for table, known in lacking:
            where = "the table" if len(read) == 1 else table
            tree.report(key, f"{where} has no column {name!r}{list_options(name, known)}")
        if not lacking and name in taken:
            tree.report(key, f"the column {name!r} is also {format_key(taken[name])}; it can be one thing")
        taken.setdefault(name, key)
    for index, name in enumerate(within):
        known = [*map(str, factors), *([columns["file"]] if isinstance(columns.get("file"), str) else [])]
        if name not in known:
            tree.report(("columns", "within", index), f"there is no factor {name!r}{list_options(str(name), known)}")
    if columns.get("shift") is None:
        about: list[Key] = [("clean",), ("columns", "severity"), ("columns", "within")]
        about += [("metrics", name, "clean") for name in metrics]
        for key in [key for key in about if _at(value, key) is not None]:
            tree.report(key, "there is no column of shifts that this would be about; name columns.shift")


def _add_file_names(factor: str, read: Sequence[tuple[str, Sequence[Row]]], tree: Source) -> None:
    """Add the column of the factor that is the file's name, and report a table that has it, and names used twice."""
    seen: dict[str, str] = {}
    for table, rows in read:
        level = Path(table).stem
        if factor in rows[0].cells:
            tree.report(("columns", "file"), f"{table} has a column {factor!r} already; name it in columns.factors")
        elif seen.setdefault(level, table) != table:
            tree.report(("columns", "file"), f"{table} and {seen[level]} have one name; rename a file")
        else:
            for row in rows:
                row.cells[factor] = level


def _at(value: Any, key: Key) -> Any:
    for part in key:
        value = value.get(part) if isinstance(value, dict) else None
    return value


class _Reader:
    """Reader of rows whose columns are known; problems are reported to the rows' sheets."""

    def __init__(self, config: StatsConfig, rows: Sequence[Row]) -> None:
        self.config = config
        self.columns = config.columns
        self.rows = rows
        #: What the shift column says of what is not shifted, None if nothing.
        self.clean: str | None = None

    def read(self, tree: Source) -> list[dict[str, Any]]:
        """Return records with the factors, ``SEED``, ``SHIFT``, ``SEVERITY`` and the metrics, one per evaluation."""
        self._find_clean(tree)
        if tree.problems:
            return []
        records: dict[tuple[Any, ...], dict[str, Any]] = {}
        lines: dict[tuple[Any, ...], Row] = {}
        for row in self.rows:
            trial = self._trial(row)
            key = (*trial.values(), *self._shift(row))
            first = lines.setdefault(key, row)
            if first is not row:
                text = (
                    f"found {self._name(row)} a second time, first in {row.place(first)}; give one row per evaluation"
                )
                row.report("", text)
                continue
            numbers = {name: row.number(name) for name in self.config.metrics}
            records[key] = trial | dict(zip((SHIFT, SEVERITY), key[-2:], strict=True)) | numbers
        self._add_clean_columns(records, lines)
        return list(records.values())

    def _find_clean(self, tree: Source) -> None:
        wanted, shift, severity = self.config.clean, self.columns.shift, self.columns.severity
        if wanted is None or shift is None:
            return
        found = list(dict.fromkeys(row.cells[shift] for row in self.rows))
        self.clean = find_label(wanted, found)
        has_unshifted = severity is not None and any(_is_zero(row.cells[severity]) for row in self.rows)
        if self.clean is None and not has_unshifted:
            tree.report(
                ("clean",),
                f"no row has {str(wanted)!r} in the column {shift!r}, and none has severity 0"
                f"{list_options(str(wanted), found)}",
            )

    def _trial(self, row: Row) -> dict[str, str]:
        seed = "only" if self.columns.seed is None else row.text(self.columns.seed)
        return {name: row.text(name) for name in self.columns.all_factors} | {SEED: seed}

    def _shift(self, row: Row) -> tuple[str, float]:
        """Return shift and severity: "" and 0 for an unshifted row, severity 1 if the table has no severities."""
        shift, column = self.columns.shift, self.columns.severity
        if shift is None or (self.clean is not None and row.cells[shift] == self.clean):
            return "", 0.0
        if column is None:
            return row.text(shift), 1.0
        severity = row.number(column)
        if math.isnan(severity):
            row.report(column, "found nothing, expected a severity; the key `clean` names a shift that is none")
        return ("", 0.0) if severity == 0 else (row.text(shift), severity)

    def _add_clean_columns(self, records: dict[tuple[Any, ...], dict[str, Any]], lines: Mapping[Any, Row]) -> None:
        """Add what the columns of unshifted metrics say to the unshifted record of each trial."""
        wide = {name: metric.clean for name, metric in self.config.metrics.items() if metric.clean is not None}
        for key, row in lines.items():
            for name in wide if key[-2:] == ("", 0.0) else ():
                if not math.isnan(records[key][name]):
                    row.report(name, f"found a value that is not shifted, as {wide[name]} has; keep one of them")
        said: dict[tuple[Any, ...], tuple[float, Row]] = {}
        for key, row in lines.items():
            for name, column in wide.items():
                value = row.number(column)
                if math.isnan(value):
                    continue
                first, where = said.setdefault((*key[:-2], name), (value, row))
                if first != value:
                    row.report(
                        column, f"found {value:g}, expected {first:g} as in {row.place(where)}: one trained model"
                    )
                clean = (*key[:-2], "", 0.0)
                if clean not in records:
                    empty = dict.fromkeys(self.config.metrics, math.nan)
                    records[clean] = records[key] | {SHIFT: "", SEVERITY: 0.0} | empty
                records[clean][name] = first

    def _name(self, row: Row) -> str:
        names: Iterable[str | None] = (
            *self.columns.all_factors,
            self.columns.seed,
            self.columns.shift,
            self.columns.severity,
        )
        return ", ".join(f"{name}={row.cells[name]}" for name in names if name is not None)


def _is_zero(text: str) -> bool:
    try:
        return float(text) == 0
    except ValueError:
        return False
