from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from trainables.errors import DataError
from trainables.evaluation.balanced import (
    Errors,
    ReferenceTable,
    binomial_errors,
    compute_relative_errors,
    load_reference,
)


def test_relative_errors_by_hand() -> None:
    found = compute_relative_errors(Errors(0.1, {"jpeg": 0.2, "snow": 0.6}), Errors(0.2, {"jpeg": 0.4, "snow": 0.4}))
    assert found.be == {"jpeg": pytest.approx(0.5), "snow": pytest.approx(1.5)}
    assert found.rbe == {"jpeg": pytest.approx(0.5), "snow": pytest.approx(2.5)}
    assert found.mean_be == pytest.approx(1.0)
    assert found.mean_rbe == pytest.approx(1.5)
    assert found.rbe_of_sums == pytest.approx((0.1 + 0.5) / (0.2 + 0.2))
    assert found.undefined == {}


def test_the_cells_of_a_stain_grid_are_one_term_of_the_sums() -> None:
    errors, reference = (
        Errors(0.1, {"jpeg": 0.3, "stain_h0.50_e1.00": 0.4, "stain_h0.75_e1.00": 0.2}),
        Errors(0.1, {"jpeg": 0.2, "stain_h0.50_e1.00": 0.6, "stain_h0.75_e1.00": 0.2}),
    )
    found = compute_relative_errors(errors, reference)
    assert found.rbe_of_sums == pytest.approx((0.2 + (0.3 + 0.1) / 2) / (0.1 + (0.5 + 0.1) / 2))


def test_losses_within_two_standard_errors_are_left_out_of_rbe_and_not_of_be() -> None:
    errors, reference = (Errors(0.1, {"jpeg": 0.3, "snow": 0.2}), Errors(0.1, {"jpeg": 0.2, "snow": 0.11}))
    raw = compute_relative_errors(errors, reference)
    assert raw.mean_rbe == pytest.approx((2.0 + 10.0) / 2)  # a denominator of one point makes it
    assert raw.rbe_of_sums == pytest.approx(0.3 / 0.11)
    found = compute_relative_errors(errors, reference, {"jpeg": 0.049, "snow": 0.0051})
    assert found.rbe == {"jpeg": pytest.approx(2.0)}
    assert found.undefined == {"rbe/snow": "what it adds to the reference's errors cannot be told from 0"}
    assert set(found.be) == {"jpeg", "snow"}
    assert found.rbe_of_sums == pytest.approx(2.0)
    nothing = compute_relative_errors(errors, reference, dict.fromkeys(reference.shifted, 1.0))
    assert (nothing.rbe, nothing.mean_rbe, nothing.rbe_of_sums) == ({}, None, None)


def test_binomial_standard_error_of_a_loss_is_that_of_simulated_test_sets() -> None:
    random = np.random.default_rng(0)
    losses = (random.binomial(200, 0.3, size=20_000) - random.binomial(200, 0.1, size=20_000)) / 200
    assert binomial_errors(Errors(0.1, {"jpeg": 0.3}), 200)["jpeg"] == pytest.approx(losses.std(), rel=0.02)


def test_the_reference_itself_is_one() -> None:
    errors = Errors(0.1, {"jpeg": 0.3, "snow": 0.2})
    found = compute_relative_errors(errors, errors)
    assert (found.mean_be, found.mean_rbe) == (1.0, 1.0)


def test_undefined_denominators_are_left_out_and_said() -> None:
    reference = Errors(0.2, {"jpeg": 0.4, "gamma_up": 0.2, "contrast_up": 0.1, "pixelate": 0.0})
    shifted = dict.fromkeys((*reference.shifted, "snow"), 0.3)
    found = compute_relative_errors(Errors(0.1, shifted), reference)
    assert set(found.be) == {"jpeg", "gamma_up", "contrast_up"}
    assert set(found.rbe) == {"jpeg"}
    assert found.mean_rbe == pytest.approx(1.0)
    assert set(found.undefined) == {
        "be/pixelate", "be/snow", "rbe/gamma_up", "rbe/contrast_up", "rbe/pixelate", "rbe/snow",
    }  # fmt: skip
    nothing = compute_relative_errors(Errors(0.1, {"pixelate": 0.3}), reference)
    assert (nothing.mean_be, nothing.mean_rbe) == (None, None)


def test_a_given_reference_is_read_with_medmnist_cs_names(tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    path.write_text('{"clean_score": 0.1, "raw_scores": {"jpeg_compression": 0.2, "gamma_corr_up": 0.3}}')
    assert load_reference(path) == ReferenceTable(0.1, {"jpeg": 0.2, "gamma_up": 0.3})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"clean_score": 0.1}',
        '{"clean_score": 0, "raw_scores": {"jpeg": "x"}}',
        '{"clean_score": 12, "raw_scores": {"jpeg": 0.1}}',
    ],
)
def test_a_reference_of_another_form_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"could not read the reference .*expected JSON like"):
        load_reference(path)


def write_table(folder: Path, text: str) -> Path:
    path = folder / "reference.csv"
    path.write_text(text)
    return path


def test_a_table_of_means_over_severities(tmp_path: Path) -> None:
    path = write_table(tmp_path, "error, shift, by\n0.1,identity,us\n0.2,jpeg_compression,us\n.3,snow,us\n")
    table = load_reference(path)
    assert table == ReferenceTable(0.1, {"jpeg": 0.2, "snow": 0.3})
    assert table.select({"jpeg": {1, 3}, "fog": {1}}) == Errors(0.1, {"jpeg": 0.2})
    assert ReferenceTable.from_json(json.loads(json.dumps(table.as_json()))) == table


def test_a_table_by_severity_answers_for_the_severities_that_were_evaluated(tmp_path: Path) -> None:
    text = "shift,severity,error\njpeg,1,0.2\njpeg,3,0.4\njpeg,5,0.9\nidentity,,0.1\nsnow,1,0.5\n"
    table = load_reference(write_table(tmp_path, text))
    assert table == ReferenceTable(0.1, {"jpeg": {1: 0.2, 3: 0.4, 5: 0.9}, "snow": {1: 0.5}})
    found = table.select({"jpeg": {1, 3}, "snow": {1, 3}})
    assert (found.clean, found.shifted) == (0.1, {"jpeg": pytest.approx(0.3)})  # snow lacks a severity
    assert ReferenceTable.from_json(json.loads(json.dumps(table.as_json()))) == table


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "found no columns and no column shift or error"),
        ("shift,severity\njpeg,1\n", "found shift, severity and no column error"),
        ("shift,error\njpeg,0.2\n", "no row of the shift identity"),
        ("shift,error\nidentity,0.2\n", "found no shift"),
        ("shift,error\nidentity,0.1\njpeg,20\n", "line 3: found the error '20', expected a number in"),
        ("shift,error\nidentity,0.1\njpeg,nan\n", "line 3: found the error 'nan'"),
        ("shift,error\nidentity,0.1\njpeg\n", "line 3: found the error ''"),
        ("shift,error\nidentity,0.1\n,0.2\n", "line 3: found no shift"),
        ("shift,error\nidentity,0.1\njpeg,0.2\njpeg,0.3\n", "line 4: jpeg is there twice"),
        ("shift,error\nidentity,0.1\nidentity,0.2\n", "line 3: identity is there twice"),
        ("shift,severity,error\nidentity,0,0.1\njpeg,1,0.2\njpeg,1,0.3\n", "line 4: jpeg at severity 1 is there twice"),
        ("shift,severity,error\nidentity,0,0.1\njpeg,all,0.2\n", "line 3: found the severity 'all'"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"(?s)read the reference .*reference.csv.*{re.escape(said)}"):
        load_reference(write_table(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"could not read the reference .*gone\.csv"):
        load_reference(tmp_path / "gone.csv")
