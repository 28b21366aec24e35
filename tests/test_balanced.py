from __future__ import annotations

from pathlib import Path

import pytest

from trainables.errors import DataError
from trainables.evaluation.balanced import Errors, collect_errors, compute_relative_errors, load_reference


def row(shift: str, severity: int, accuracy: float, name: str = "test") -> dict:
    return {"set": name, "shift": shift, "severity": severity, "metrics": {"balanced_accuracy": accuracy}}


def test_errors_are_means_over_severities_of_the_test_set() -> None:
    errors = collect_errors(
        [row("identity", 0, 0.75, "val"), row("identity", 0, 0.9), row("jpeg", 1, 0.8), row("jpeg", 5, 0.5)]
    )
    assert errors.clean == pytest.approx(0.1)
    assert errors.shifted == {"jpeg": pytest.approx(0.35)}
    with pytest.raises(DataError, match="unshifted test set"):
        collect_errors([row("jpeg", 1, 0.8), row("identity", 0, 0.9, "val")])


def test_relative_errors_by_hand() -> None:
    found = compute_relative_errors(Errors(0.1, {"jpeg": 0.2, "snow": 0.6}), Errors(0.2, {"jpeg": 0.4, "snow": 0.4}))
    assert found.be == {"jpeg": pytest.approx(0.5), "snow": pytest.approx(1.5)}
    assert found.rbe == {"jpeg": pytest.approx(0.5), "snow": pytest.approx(2.5)}
    assert found.mean_be == pytest.approx(1.0)
    assert found.mean_rbe == pytest.approx(1.5)
    assert found.undefined == {}


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
    assert load_reference(path) == Errors(0.1, {"jpeg": 0.2, "gamma_up": 0.3})


@pytest.mark.parametrize("text", ["", "[]", '{"clean_score": 0.1}', '{"clean_score": 0, "raw_scores": {"jpeg": "x"}}'])
def test_a_reference_of_another_form_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"could not read the reference .*expected JSON like"):
        load_reference(path)
