"""Tables as text: JSON rows for digests, CSV, LaTeX and Markdown. JSON and CSV share the text of each value."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

#: Rows held as text at once; 700,000 rows would be a gigabyte.
_CHUNK = 20_000


class TextTable:
    """Cells of a table as JSON texts, undefined ones as null.

    Cells are written by column: ``DataFrame.to_csv`` and a JSON object per row take 10 s each for 10,000 trials of 73
    evaluations.

    Args:
        frame: numbers, strings, booleans and undefined values; no infinity.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self._columns = {str(column): _write_column(frame[column]) for column in frame}
        self._numbers = {str(column) for column in frame if _is_all_numbers(frame[column])}
        self._num_rows = len(frame)

    def json_rows(self, *, without: tuple[str, ...] = (), order: ArrayLike | None = None) -> Iterator[str]:
        """Yield every row as a JSON object with sorted keys, without the columns ``without``.

        Args:
            without: columns to leave out.
            order: row numbers in the wanted order; None keeps the order of the table.
        """
        names = sorted(column for column in self._columns if column not in without)
        template = ",".join(json.dumps(name).replace("%", "%%") + ":%s" for name in names)
        numbers = np.arange(self._num_rows) if order is None else np.asarray(order)
        for start in range(0, len(numbers), _CHUNK):
            chunk = numbers[start : start + _CHUNK].tolist()
            rows = zip(*(map(self._columns[name].__getitem__, chunk) for name in names), strict=True)
            yield from map(f"{{{template}}}".__mod__, rows)

    def csv(self) -> str:
        """Return the text of ``DataFrame.to_csv(index=False)``, with lines ending in a line feed."""
        columns = [
            texts if name in self._numbers else list(map(_csv_cell, texts)) for name, texts in self._columns.items()
        ]
        head = ",".join(_csv_cell(json.dumps(column)) for column in self._columns)
        return "\n".join([head, *map(",".join, zip(*columns, strict=True))]) + "\n"


def _write_column(values: pd.Series) -> list[str]:
    if values.empty:
        return []
    is_text = pd.api.types.is_string_dtype(values.dtype) and values.dtype != object
    if is_text or pd.api.types.is_integer_dtype(values.dtype):
        # These columns repeat a few values thousands of times: write each value once.
        codes, different = pd.factorize(values)
        return np.array([*_write(different.tolist()), "null"], dtype=object)[codes].tolist()
    return _write(values.astype(object).where(values.notna(), None).tolist())


def _write(values: list[Any]) -> list[str]:
    # JSON text without indent contains no line break, so a line break can separate the values.
    text = json.dumps(values, separators=("\n", ":"), allow_nan=False, default=_plain)[1:-1]
    return text.split("\n") if values else []


def _plain(value: Any) -> Any:
    """Return the Python number of a NumPy scalar. Anything else is an AttributeError."""
    return value.item()


def _is_all_numbers(values: pd.Series) -> bool:
    """Return whether a column holds only defined numbers, whose JSON texts are their CSV texts."""
    is_number = pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype)
    return is_number and not values.hasnans


def _csv_cell(text: str) -> str:
    """Return the CSV text of a JSON value."""
    return _csv_text(text) if text[0] in '"nft' else text


@cache
def _csv_text(text: str) -> str:
    """Return the CSV text of a JSON string, null, true or false."""
    value = json.loads(text)
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(["" if value is None else value, ""])
    return line.getvalue()[:-2]


_LATEX = {character: f"\\{character}" for character in "&%$#_{}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\n": " "}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
_LATEX |= {"±": r"$\pm$", "–": "--", "·": r"$\cdot$", "×": r"$\times$", "−": "$-$", "≥": r"$\geq$", "≤": r"$\leq$"}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~])")


def escape_latex(text: str) -> str:
    """Return text with the characters escaped that are special in LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)


def escape_markdown(text: str) -> str:
    """Return text on one line, with the characters escaped that are special in Markdown."""
    return _MARKDOWN.sub(r"\\\1", text.replace("\n", " "))


def write_latex(head: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int, caption: str, label: str) -> str:
    """Return a ``table`` environment in the style of booktabs; the first ``texts`` columns are left-aligned."""
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{escape_latex(caption)}}}",
        f"\\label{{tab:{label}}}",
        f"\\begin{{tabular}}{{{'l' * texts}{'r' * (len(head) - texts)}}}",
        "\\toprule",
        " & ".join(map(escape_latex, head)) + r" \\",
        "\\midrule",
        *(" & ".join(map(escape_latex, row)) + r" \\" for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def write_markdown(head: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int, caption: str) -> str:
    """Return a Markdown table under its caption; the first ``texts`` columns are left-aligned."""
    rule = [":--" if number < texts else "--:" for number in range(len(head))]
    body = [[escape_markdown(cell) for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in (body[0], rule, *body[1:])]
    return f"{escape_markdown(caption)}\n\n" + "\n".join(lines) + "\n"
