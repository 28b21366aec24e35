"""CSV files from elsewhere as rows of text, with the line that each row came from."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.study.yaml_source import MAX_BYTES, MAX_SHOWN, Problem, Source, read_yaml
from trainables.errors import StudyError


@dataclass(frozen=True)
class Row:
    """One line of a table; problems with it are reported to ``sheet``."""

    sheet: Source
    line: int
    cells: dict[str, str]

    def report(self, column: str, text: str) -> None:
        """Add a problem in a column of this row; "" for the row as a whole."""
        report_line(self.sheet, self.line, column, text)

    def text(self, column: str) -> str:
        """Return the text in a cell, and report an empty one."""
        if not self.cells[column]:
            self.report(column, "found nothing, expected a value")
        return self.cells[column]

    def number(self, column: str) -> float:
        """Return the number in a cell, NaN if the cell is empty or has one of the usual words for undefined."""
        text = self.cells[column]
        if text.lower() in ("", "nan", "na", "none", "null"):
            return math.nan
        try:
            value = float(text)
        except ValueError:
            value = math.inf
        if math.isinf(value):
            self.report(column, f"found {text!r}, expected a finite number, or nothing where it is undefined")
        return value

    def place(self, other: Row) -> str:
        """Return where ``other`` is in words, seen from this row: "line 3", with the file's name if that differs."""
        return f"line {other.line}" + (f" of {other.sheet.name}" if other.sheet is not self.sheet else "")


def report_line(sheet: Source, line: int, column: str, text: str) -> None:
    """Add a problem in a line of a table."""
    sheet.add(Problem(f"{sheet.name}:{line}", line, column, text))


def read_settings(path: Path | str) -> Source:
    """Return the tree of a configuration.

    Raises:
        StudyError: the file cannot be read.
    """
    return read_yaml(_read(path, "the configuration", MAX_BYTES + 1), str(path))


def read_sheet(path: Path | str) -> tuple[Source, list[Row]]:
    """Return the rows of a table, and where problems with them are reported: lines that do not fit the header are.

    Args:
        path: CSV in UTF-8 with a header; the delimiter is a comma, semicolon or tab.

    Raises:
        StudyError: the file cannot be read.
    """
    text, sheet = _read(path, "the results"), Source(str(path))
    first = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    rows: list[Row] = []
    try:
        head = [name.strip() for name in next(reader, [])]
        for name in sorted({name for name in head if head.count(name) > 1}):
            report_line(sheet, 1, name, f"the column is there {head.count(name)} times; keep one")
        for cells in reader:
            if len(cells) == len(head):
                named = zip(head, (cell.strip() for cell in cells), strict=True)
                rows.append(Row(sheet, reader.line_num, dict(named)))
            elif cells:
                text = f"found {len(cells)} cells, expected {len(head)} as in the header"
                report_line(sheet, reader.line_num, "", text)
    except csv.Error as error:
        report_line(sheet, reader.line_num, "", f"this is not valid CSV: {error}")
    if not rows and not sheet.problems:
        sheet.report((), "found no rows, expected a header and a row per evaluation")
    return sheet, rows


def describe_problems(sources: Sequence[Source], attempt: str) -> str:
    """Return one message with the problems of several files, each in the order of its lines."""
    listed = [problem for source in sources for problem in sorted(source.problems, key=lambda each: each.line)]
    head = "1 problem" if len(listed) == 1 else f"{len(listed)} problems"
    lines = [f"{attempt}, found {head}:", *map(str, listed[:MAX_SHOWN])]
    return "\n  ".join(lines + [f"… and {len(listed) - MAX_SHOWN} more"] * (len(listed) > MAX_SHOWN))


def _read(path: Path | str, what: str, limit: int = -1) -> str:
    try:
        with Path(path).open("rb") as file:
            return file.read(limit).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise StudyError(f"could not read {what} {path}: {error}; expected a text file in UTF-8") from error
