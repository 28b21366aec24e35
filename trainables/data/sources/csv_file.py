"""Reading of a CSV file with a header: a manifest, or a file beside a folder."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from trainables.data.assembly import suggest
from trainables.data.identity.texts import normalise
from trainables.errors import DataError


def read_csv(
    path: Path, *, key: str, required: Sequence[str], optional: Sequence[str] = ()
) -> tuple[dict[str, list[str]], list[int]]:
    """Return column → its cells as normalised text, and the line of every row; empty lines are left out.

    Args:
        path: file in UTF-8, separated by commas.
        key: setting that names the file, for messages.
        required: columns that it must have.
        optional: further columns, for messages.

    Raises:
        DataError: the file cannot be read, lacks a column, names one twice, or a line has too many cells.
    """
    names: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            names = [normalise(name) for name in next(reader, [])]
            _check_columns(names, path, required, optional)
            for cells in reader:
                if len(cells) > len(names):
                    raise DataError(
                        f"{path.name} line {reader.line_num} has {len(cells)} cells, expected {len(names)} like the "
                        'header: quote values that contain a comma ("a, b")'
                    )
                if any("\0" in cell for cell in cells):
                    raise DataError(f"{path.name} line {reader.line_num} holds a NUL character, expected text")
                if any(cell.strip() for cell in cells):
                    rows.append([normalise(cell) for cell in cells] + [""] * (len(names) - len(cells)))
                    lines.append(reader.line_num)
    except FileNotFoundError:
        raise DataError(f"{key}: there is no file {path}; expected a CSV file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{key}: could not read {path}: {error}; expected CSV in UTF-8") from error
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}, lines


def _check_columns(names: Sequence[str], path: Path, required: Sequence[str], optional: Sequence[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or "" in names:
        raise DataError(
            f"{path.name} has the columns {list(names)}; expected every column to have a name, and no name twice: "
            "correct its first line"
        )
    for name in required:
        if name not in names:
            also = f" and optionally {', '.join(optional)}" if optional else ""
            raise DataError(
                f"{path.name} has no column {name!r}{suggest(name, names)}; found {', '.join(names) or 'none'}; "
                f"expected {', '.join(required)}{also}, separated by commas"
            )
