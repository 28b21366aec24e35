from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from orchestrator.analysis.formats import TextTable

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
    assert list(TextTable(TRICKY).json_rows()) == expected
    fewer = json.loads(next(TextTable(TRICKY).json_rows(without=("number", "mixed"))))
    assert set(fewer) == set(TRICKY) - {"number", "mixed"}


@pytest.mark.parametrize("frame", [pd.DataFrame({"a": [], "b": []}), TRICKY.iloc[:0]])
def test_a_table_without_rows_is_its_head(frame: pd.DataFrame) -> None:
    assert TextTable(frame).csv() == frame.to_csv(index=False, lineterminator="\n")
    assert list(TextTable(frame).json_rows()) == []


def test_an_infinite_number_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        TextTable(pd.DataFrame({"a": [float("inf")]}))
