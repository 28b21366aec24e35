"""Tables as text: JSON rows for digests, CSV, LaTeX and Markdown. JSON and CSV share the text of each value."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pydantic_core import to_json

#: Rows held as text at once; 700,000 rows would be a gigabyte.
_CHUNK = 20_000

#: Texts of one column, an array of str.
_Texts = NDArray[np.object_]


class TextTable:
    """Cells of a table as JSON texts, undefined ones as null, and as CSV texts.

    Cells are written by column and joined by thousands of rows: 10,000 trials of 73 evaluations are 12 million cells,
    for which ``DataFrame.to_csv`` or a JSON object per row take 10 s each.

    Args:
        frame: numbers, strings, booleans and undefined values; no infinity.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self._columns = {str(column): _write_column(frame[column]) for column in frame}
        self._num_rows = len(frame)

    def json_rows(self, *, without: tuple[str, ...] = (), order: ArrayLike | None = None) -> Iterator[str]:
        """Yield the rows as JSON objects with sorted keys, thousands of rows a text, with a comma between two rows.

        Args:
            without: columns to leave out.
            order: row numbers in the wanted order; None keeps the order of the table.
        """
        names = sorted(column for column in self._columns if column not in without)
        # The first one ends the row before.
        keys = [f"{',' if number else '},{'}{json.dumps(name)}:" for number, name in enumerate(names)]
        for text in _join(keys, [self._columns[name][0] for name in names], self._num_rows, order):
            yield f"{text[2:]}}}"

    def csv(self) -> str:
        """Return the text of ``DataFrame.to_csv(index=False)``, with lines ending in a line feed."""
        head = ",".join(_csv_cell(json.dumps(column)) for column in self._columns)
        before = ["\n", *[","] * (len(self._columns) - 1)]
        return "".join([head, *_join(before, [texts for _, texts in self._columns.values()], self._num_rows), "\n"])


def _join(
    before: Sequence[str], columns: Sequence[_Texts], num_rows: int, order: ArrayLike | None = None
) -> Iterator[str]:
    """Yield the cells of ``_CHUNK`` rows at a time, row after row, each cell after its column's ``before``."""
    numbers = np.arange(num_rows) if order is None else np.asarray(order)
    pieces = np.empty((min(_CHUNK, num_rows), len(columns), 2), dtype=object)
    pieces[:, :, 0] = before
    for start in range(0, num_rows, _CHUNK):
        rows = numbers[start : start + _CHUNK]
        for place, texts in enumerate(columns):
            pieces[: len(rows), place, 1] = texts[rows]
        yield "".join(pieces[: len(rows)].ravel().tolist())


def _write_column(values: pd.Series) -> tuple[_Texts, _Texts]:
    """Return the JSON texts and the CSV texts of a column."""
    is_text = pd.api.types.is_string_dtype(values.dtype) and values.dtype != object
    if is_text or pd.api.types.is_integer_dtype(values.dtype):
        # These columns repeat a few values thousands of times: write each value once.
        codes, different = pd.factorize(values)
        texts = _as_array([*_write(different.tolist()), "null"])
        return texts[codes], _as_array(map(_csv_cell, texts))[codes]
    if values.dtype == np.float64:
        texts = _write_floats(values.to_numpy())
        return texts, np.where(values.isna(), "", texts) if values.hasnans else texts
    texts = _as_array(_write(values.astype(object).where(values.notna(), None).tolist()))
    return texts, _as_array(map(_csv_cell, texts))


def _as_array(texts: Iterable[str]) -> _Texts:
    return np.array(list(texts), dtype=object)


def _write(values: list[Any]) -> list[str]:
    # JSON text without indent contains no line break, so a line break can separate the values.
    text = json.dumps(values, separators=("\n", ":"), allow_nan=False, default=_plain)[1:-1]
    return text.split("\n") if values else []


def _write_floats(values: NDArray[np.float64]) -> _Texts:
    """Return what ``_write`` returns, with null for NaN."""
    sizes = np.abs(values)
    # pydantic's writer is four times as fast. Both write the shortest digits that are read as the same number, and
    # between these bounds, which are Python's, both without an exponent.
    alike = (sizes >= 1e-4) & (sizes < 1e16)
    others = ~alike & ~np.isnan(values)
    texts = np.full(len(values), "null", dtype=object)
    texts[alike] = to_json(values[alike].tolist()).decode()[1:-1].split(",")
    texts[others] = _write(values[others].tolist())
    return texts


def _plain(value: Any) -> Any:
    """Return the Python number of a NumPy scalar. Anything else is an AttributeError."""
    return value.item()


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
