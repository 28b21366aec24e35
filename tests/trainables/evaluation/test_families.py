"""Families of shifts: the default ones, those of a study, and means over them."""

from __future__ import annotations

import pytest

from trainables.evaluation.families import group_by_family
from trainables.evaluation.shift_means import average_by_family, average_by_type
from trainables.shifts.tables import FAMILIES, GENERAL, OTHER, STAIN_GRID, load_tables


def test_every_shift_of_the_bank_is_in_one_default_family() -> None:
    listed = [shift for shifts in FAMILIES.values() for shift in shifts]
    assert len(listed) == len(set(listed))
    assert set(listed) == {*load_tables()[GENERAL], STAIN_GRID}


def test_what_no_family_lists_is_other() -> None:
    found = group_by_family(["jpeg", "snow_then_jpeg", STAIN_GRID, "shot_noise", "dusk"], {})
    assert found == {
        "noise": ["shot_noise"],
        "digital": ["jpeg"],
        "stain": [STAIN_GRID],
        OTHER: ["snow_then_jpeg", "dusk"],
    }


def test_a_study_s_families_come_first_and_replace_default_ones_of_their_name() -> None:
    own = {"scanner": ["jpeg_compression", "dusk", "stain-grid"], "noise": ["shot_noise"]}
    found = group_by_family(["shot_noise", "gaussian_noise", "jpeg", "pixelate", "dusk", STAIN_GRID], own)
    assert found == {
        "scanner": ["jpeg", "dusk", STAIN_GRID],
        "noise": ["shot_noise"],
        "digital": ["pixelate"],
        OTHER: ["gaussian_noise"],
    }


def test_the_cells_of_a_stain_grid_weigh_as_one_shift_of_their_family() -> None:
    by_type = average_by_type({"stain_h1_e2": 0.2, "stain_h2_e1": 0.4, "dusk": 0.9, "jpeg": 0.5})
    families = group_by_family(by_type, {"lab": ["stain-grid", "dusk"]})
    assert average_by_family(by_type, families) == pytest.approx({"lab": 0.6, "digital": 0.5})
