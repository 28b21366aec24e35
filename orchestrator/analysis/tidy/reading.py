"""Reader of results from elsewhere: a tidy table and a small YAML file that describes its columns.

A row of the table is one evaluation of one trained model: its condition (a column per factor), its seed, the shift and
severity it was evaluated under, and its metrics.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field, ValidationError

from orchestrator.analysis.tidy.results import SEED, SEVERITY, SHIFT, TidyResults, find_measures
from orchestrator.statistics.power import Test
from orchestrator.study.hypotheses import HypothesisConfig, expand_kinds
from orchestrator.study.problems import explain, list_options
from orchestrator.study.yaml_source import MAX_BYTES, MAX_SHOWN, Key, Problem, Source, format_key, read_yaml
from trainables.errors import StudyError
from trainables.frozen import Frozen, Seed

Column = Annotated[str, Field(min_length=1)]


class ColumnsConfig(Frozen):
    """Roles of the table's columns."""

    factors: list[Column] = Field(
        min_length=1, description="one column per factor; with a single column of conditions, that one"
    )
    seed: Column = Field(description="column of the seed, or replicate, that all conditions share")
    shift: Column | None = Field(None, description="Column of the kind of shift; null: nothing was shifted.")
    severity: Column | None = Field(None, description="Column of the severity, a number; 0 is not shifted.")


class MetricConfig(Frozen):
    """One metric column."""

    better: Literal["higher", "lower"] = Field(description="higher or lower, whichever is better")
    smallest_effect: float | None = Field(
        None, gt=0, description="Smallest difference that matters: how many seeds would show it?"
    )


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


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    line: int
    cells: dict[str, str]


def load_tidy(table: Path | str, config: Path | str) -> tuple[StatsConfig, TidyResults]:
    """Return the configuration and the results in the table.

    Args:
        table: CSV in UTF-8 with a header; the delimiter is a comma, semicolon or tab.
        config: YAML file, see ``StatsConfig``.

    Raises:
        StudyError: one of them cannot be read or is wrong; the message names every problem with its line.
    """
    settings = _read(config, "the configuration", MAX_BYTES + 1)
    tree, sheet = read_yaml(settings, str(config)), Source(str(table))
    rows = _read_rows(_read(table, "the results"), sheet)
    parsed, measured = _validate(tree), None
    if rows:
        _check_columns(list(rows[0].cells), tree)
    if rows and parsed is not None and not tree.problems:
        frame = _check_rows(rows, parsed, sheet)
        if not tree.problems and not sheet.problems:
            measured = find_measures(frame, parsed.columns.factors, parsed.reference, parsed.directions)
            measured.check(parsed.reference, parsed.hypotheses, tree)
    if parsed is None or measured is None or tree.problems or sheet.problems:
        raise StudyError(_describe([tree, sheet], f"read the results {table} as {config} says"))
    return parsed, measured


def _read(path: Path | str, what: str, limit: int = -1) -> str:
    try:
        with Path(path).open("rb") as file:
            return file.read(limit).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise StudyError(f"could not read {what} {path}: {error}; expected a text file in UTF-8") from error


def _describe(sources: Sequence[Source], attempt: str) -> str:
    listed = [problem for source in sources for problem in sorted(source.problems, key=lambda each: each.line)]
    head = "1 problem" if len(listed) == 1 else f"{len(listed)} problems"
    lines = [f"{attempt}, found {head}:", *map(str, listed[:MAX_SHOWN])]
    return "\n  ".join(lines + [f"… and {len(listed) - MAX_SHOWN} more"] * (len(listed) > MAX_SHOWN))


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


def _read_rows(text: str, sheet: Source) -> list[Row]:
    """Return the rows of a table, and report lines that do not fit the header to ``sheet``."""
    first = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    rows: list[Row] = []
    try:
        head = [name.strip() for name in next(reader, [])]
        _check_head(head, sheet)
        for cells in reader:
            if len(cells) == len(head):
                rows.append(Row(reader.line_num, {name: cell.strip() for name, cell in zip(head, cells, strict=True)}))
            elif cells:
                _report(sheet, reader.line_num, "", f"found {len(cells)} cells, expected {len(head)} as in the header")
    except csv.Error as error:
        _report(sheet, reader.line_num, "", f"this is not valid CSV: {error}")
    if not rows and not sheet.problems:
        sheet.report((), "found no rows, expected a header and a row per evaluation")
    return rows


def _report(sheet: Source, line: int, column: str, text: str) -> None:
    sheet.add(Problem(f"{sheet.name}:{line}", line, column, text))


def _check_head(head: Sequence[str], sheet: Source) -> None:
    for name in sorted({name for name in head if head.count(name) > 1}):
        _report(sheet, 1, name, f"the column is there {head.count(name)} times; keep one")


def _check_rows(rows: Sequence[Row], config: StatsConfig, sheet: Source) -> pd.DataFrame:
    """Return the table with the columns of the factors, ``SEED``, ``SHIFT``, ``SEVERITY`` and the metrics."""
    columns, seen = config.columns, dict[tuple[Any, ...], int]()
    records = []
    for row in rows:
        record: dict[str, Any] = {name: _text(row, name, sheet) for name in columns.factors}
        record[SEED] = _text(row, columns.seed, sheet)
        record |= dict(zip((SHIFT, SEVERITY), _shift(row, config, sheet), strict=True))
        first = seen.setdefault(tuple(record.values()), row.line)
        if first != row.line:
            text = f"found {_name(row, config)} a second time, first in line {first}; give one row per evaluation"
            _report(sheet, row.line, "", text)
        record |= {name: _number(row, name, sheet) for name in config.metrics}
        records.append(record)
    return pd.DataFrame(records)


def _check_columns(known: list[str], tree: Source) -> None:
    """Report columns that the table lacks and columns with two roles, also if the configuration has other problems."""
    value = tree.value if isinstance(tree.value, dict) else {}
    columns, metrics = ({} if not isinstance(value.get(key), dict) else value[key] for key in ("columns", "metrics"))
    factors = columns.get("factors")
    named: list[tuple[Key, Any]] = [
        *(
            (("columns", "factors", index), name)
            for index, name in enumerate(factors if isinstance(factors, list) else ())
        ),
        *((("columns", field), columns.get(field)) for field in ("seed", "shift", "severity")),
        *((("metrics", name), name) for name in metrics),
    ]
    taken: dict[str, Key] = {}
    for key, name in ((key, name) for key, name in named if isinstance(name, str)):
        if name not in known:
            tree.report(key, f"the table has no column {name!r}{list_options(name, known)}")
        elif name in taken:
            tree.report(key, f"the column {name!r} is also {format_key(taken[name])}; it can be one thing")
        taken.setdefault(name, key)
    if columns.get("shift") is None:
        for key in [key for key in (("clean",), ("columns", "severity")) if _at(value, key) is not None]:
            tree.report(key, "there is no column of shifts that this would be about; name columns.shift")


def _at(value: Any, key: Key) -> Any:
    for part in key:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _text(row: Row, column: str, sheet: Source) -> str:
    if not row.cells[column]:
        _report(sheet, row.line, column, "found nothing, expected a value")
    return row.cells[column]


def _shift(row: Row, config: StatsConfig, sheet: Source) -> tuple[str, float]:
    """Return shift and severity: "" and 0 for an unshifted row, severity 1 if the table has no severities."""
    if config.columns.shift is None:
        return "", 0.0
    is_clean = config.clean is not None and row.cells[config.columns.shift] == str(config.clean)
    if is_clean:
        return "", 0.0
    if config.columns.severity is None:
        return _text(row, config.columns.shift, sheet), 1.0
    severity = _number(row, config.columns.severity, sheet)
    if math.isnan(severity):
        _report(sheet, row.line, config.columns.severity, "found nothing, expected a severity")
    return ("", 0.0) if severity == 0 else (_text(row, config.columns.shift, sheet), severity)


def _number(row: Row, column: str, sheet: Source) -> float:
    """Return the number in a cell, NaN if the cell is empty or has one of the usual words for undefined."""
    text = row.cells[column]
    if text.lower() in ("", "nan", "na", "none", "null"):
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if math.isinf(value):
        _report(sheet, row.line, column, f"found {text!r}, expected a finite number, or nothing where it is undefined")
    return value


def _name(row: Row, config: StatsConfig) -> str:
    columns = config.columns
    names: Iterable[str | None] = (*columns.factors, columns.seed, columns.shift, columns.severity)
    return ", ".join(f"{name}={row.cells[name]}" for name in names if name is not None)
