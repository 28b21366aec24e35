from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.analysis.tables import formats
from orchestrator.analysis.tables.formats import TextTable

TRICKY = pd.DataFrame(
    {
        "signature": ["b", "a", "c"],
        "name": ['comma, "quoted"', "line\nbreak", ""],
        "100% %s": ["é", "<b>", "null"],
        "whole": [1, -2, 10**17],
        "number": [0.1 + 0.2, np.nan, 1e-300],
        "flag": [True, False, True],
        "mixed": [0.5, None, "[1, 2]"],
        "gone": [None, None, None],
        "single": np.array([0.5, 1.5, np.nan], dtype=np.float32),
    }
)


def test_the_csv_is_the_one_of_pandas() -> None:
    assert TextTable(TRICKY).csv() == TRICKY.to_csv(index=False, lineterminator="\n")


def test_rows_are_canonical_json() -> None:
    plain = TRICKY.astype(object).where(TRICKY.notna(), None).to_dict("records")
    options: dict[str, Any] = {"sort_keys": True, "separators": (",", ":"), "default": lambda value: value.item()}
    expected = [json.dumps(row, **options) for row in plain]
    assert list(TextTable(TRICKY).json_rows()) == [",".join(expected)]
    assert list(TextTable(TRICKY).json_rows(order=[2, 0, 1])) == [",".join(expected[number] for number in (2, 0, 1))]
    fewer = json.loads(f"[{next(TextTable(TRICKY).json_rows(without=('number', 'mixed')))}]")
    assert [set(row) for row in fewer] == [set(TRICKY) - {"number", "mixed"}] * len(TRICKY)


def test_many_rows_are_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    table = TextTable(TRICKY)
    whole = next(table.json_rows()), table.csv()
    monkeypatch.setattr(formats, "_CHUNK", 2)
    assert (",".join(table.json_rows()), table.csv()) == whole


@given(st.lists(st.floats(allow_infinity=False), min_size=1))
@example([1e-4, 9.999999999999999e-05, 1e16, 9999999999999998.0, 5e-324, 1.7976931348623157e308, 0.0, -0.0])
@example([float("nan"), float("nan")])
def test_numbers_are_written_as_python_writes_them(values: list[float]) -> None:
    expected = ["" if math.isnan(value) else repr(value) for value in values]
    table = TextTable(pd.DataFrame({"place": range(len(values)), "number": values}))
    assert [line.split(",")[1] for line in table.csv().splitlines()[1:]] == expected
    rows = json.loads(f"[{next(table.json_rows())}]", parse_float=str)
    assert [row["number"] or "" for row in rows] == expected


@pytest.mark.parametrize("frame", [pd.DataFrame({"a": [], "b": []}), TRICKY.iloc[:0]])
def test_a_table_without_rows_is_its_head(frame: pd.DataFrame) -> None:
    assert TextTable(frame).csv() == frame.to_csv(index=False, lineterminator="\n")
    assert list(TextTable(frame).json_rows()) == []


def test_an_infinite_number_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        TextTable(pd.DataFrame({"a": [float("inf")]}))
