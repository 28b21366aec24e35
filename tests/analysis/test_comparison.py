"""Several studies side by side: common shifts, pairs of arms, and what is refused. Expected values from raw records."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from orchestrator.analysis.comparison.compare import Comparison, compare_studies
from orchestrator.analysis.comparison.pairs import Difference, Pair, pairs_table
from orchestrator.ledger.ledger import Ledger
from orchestrator.statistics.intervals import Interval
from tests.support.synthetic_ledger import SHIFTS, Fate, make_fake_ledger
from trainables.config import TrainingConfig, TrialConfig
from trainables.data_config import DigitsData
from trainables.errors import StudyError

FACTORS = {"augmentation": ("none", "strong")}
BASE = TrialConfig(data=DigitsData())
LONGER = BASE.model_copy(update={"training": TrainingConfig(epochs=30)})
BALANCED = "balanced_accuracy"


def make(folder: Path, study: str, config: TrialConfig = LONGER, **options: Any) -> Ledger:
    return make_fake_ledger(folder, study=study, config=config, **({"factors": FACTORS, "replicates": 6} | options))


def read(ledger: Ledger, arm: str) -> list[dict[str, Any]]:
    """Return the raw results of an arm, in the order of the replicates."""
    trials = [trial for trial in ledger.read_plan()["trials"] if trial["arm"]["augmentation"] == arm]
    return [ledger.folder("trial", trial["signature"]).read_json("result.json") for trial in trials]


def mean_over(result: dict[str, Any], keep: Callable[[str, int], bool] = lambda shift, severity: True) -> float:
    """Return the mean over shifts of the mean over severities of a raw result."""
    by_shift: dict[str, list[float]] = {}
    for row in result["evaluations"]:
        if row["set"] == "test" and row["severity"] and keep(row["shift"], row["severity"]):
            by_shift.setdefault(row["shift"], []).append(row["metrics"][BALANCED])
    return float(np.mean([np.mean(values) for values in by_shift.values()]))


def change(ledger: Ledger, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit the results of all trials."""
    for trial in ledger.read_plan()["trials"]:
        folder = ledger.folder("trial", trial["signature"])
        result = folder.read_json("result.json")
        edit(result)
        folder.write_json("result.json", result)


def find(compared: Comparison, first: str, second: str) -> Pair:
    (pair,) = [each for each in compared.pairs if (each.first.label, each.second.label) == (first, second)]
    return pair


def test_replicates_with_the_same_images_and_seeds_are_paired(tmp_path: Path) -> None:
    one, other = make(tmp_path, "a", BASE), make(tmp_path, "b")
    compared = compare_studies([one, other])
    assert [(pair.first.label, pair.second.label) for pair in compared.pairs] == [
        ("a · none", "b · none"),
        ("a · strong", "b · strong"),
    ]
    p_values = []
    for arm in ("none", "strong"):
        pair = find(compared, f"a · {arm}", f"b · {arm}")
        assert (pair.unpaired, pair.replicates, pair.unit) == (None, (0, 1, 2, 3, 4, 5), "replicate")
        assert pair.settings == ("training.epochs: 20 (a) / 30 (b)",)
        first, second = ([mean_over(each) for each in read(ledger, arm)] for ledger in (one, other))
        differences = np.array(second) - np.array(first)
        found = pair.differences["common_mean"]
        assert found.mean == pytest.approx(differences.mean(), abs=1e-12)
        expected = stats.ttest_rel(second, first).confidence_interval(0.95)
        assert found.interval is not None
        assert (found.interval.low, found.interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
        flips = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=6)]
        p_values.append(np.mean(np.array(flips) >= abs(differences.sum()) - 1e-12))
        assert found.p_value == pytest.approx(p_values[-1])
        clean = [each["metrics"][f"id/{BALANCED}"] for each in read(other, arm)]
        clean_before = [each["metrics"][f"id/{BALANCED}"] for each in read(one, arm)]
        assert pair.differences["unshifted"].mean == pytest.approx(np.mean(clean) - np.mean(clean_before), abs=1e-12)
    low, high = sorted(p_values)
    corrected = sorted(float(pair.differences["common_mean"].p_holm or 0) for pair in compared.pairs)
    assert corrected == pytest.approx(sorted([min(1, 2 * low), max(min(1, 2 * low), high)]))


def test_few_replicates_have_neither_interval_nor_p(tmp_path: Path) -> None:
    compared = compare_studies([make(tmp_path, "a", BASE, replicates=4), make(tmp_path, "b", replicates=6)])
    pair = compared.pairs[0]
    found = pair.differences["common_mean"]
    assert (pair.replicates, found.num_units, found.interval, found.p_value) == ((0, 1, 2, 3), 4, None, None)
    assert pair.describe_units("common_mean") == "4 replicates: at least 5 for an interval"


def test_a_pair_with_too_few_differences_says_why_it_has_no_p(tmp_path: Path) -> None:
    same = Difference(0.0, Interval(0.0, 0.0, 6), None, None, 6, 3)
    pair = compare_studies([make(tmp_path, "a", BASE), make(tmp_path, "b")]).pairs[0]
    pair = replace(pair, differences={"unshifted": same, "common_mean": replace(same, p_value=0.1, num_changed=6)})
    assert pair.describe_units("unshifted") == "6 replicates, 3 with a difference: at least 6 for a test"
    assert pair.describe_units("common_mean") == "6 replicates"


def test_replicates_that_share_an_encoder_are_one_unit(tmp_path: Path) -> None:
    one, other = make(tmp_path, "a", BASE), make(tmp_path, "b")
    plan = other.read_plan()
    for trial in plan["trials"]:
        trial["needs"] = [f"encoder-{trial['replicate'] % 2}"]
    other.root.write_json("plan.json", plan)
    pair = compare_studies([one, other]).pairs[0]
    found = pair.differences["common_mean"]
    assert (found.num_units, pair.unit, found.interval) == (2, "independent encoder", None)
    first, second = (np.array([mean_over(each) for each in read(ledger, "none")]) for ledger in (one, other))
    assert found.mean == pytest.approx((second - first).mean(), abs=1e-12)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"fingerprint": "0" * 16}, "different images, or another split or size of them"),
        ({"config": LONGER.model_copy(update={"seed": 1})}, "different seeds"),
        ({"config": BASE}, "the same trials (6 of 6 replicates), so that nothing differs"),
    ],
    ids=["images", "seeds", "same"],
)
def test_what_is_not_paired_is_described_and_not_tested(tmp_path: Path, options: Any, reason: str) -> None:
    one, other = make(tmp_path, "a", BASE), make(tmp_path, "b", **options)
    pair = compare_studies([one, other]).pairs[0]
    assert (pair.unpaired, pair.replicates) == (reason, ())
    assert pair.describe_units("unshifted") == f"not paired: {reason}"
    found = pair.differences["common_mean"]
    assert (found.interval, found.p_value, found.p_holm) == (None, None, None)
    first, second = (np.mean([mean_over(each) for each in read(ledger, "none")]) for ledger in (one, other))
    assert found.mean == pytest.approx(second - first, abs=1e-12)
    table = pairs_table([pair])
    assert table["low"].isna().all()
    assert list(table["over"].unique()) == [f"not paired: {reason}"]


def test_means_are_over_common_shifts_only(tmp_path: Path) -> None:
    one, other = make(tmp_path, "a", BASE), make(tmp_path, "b")

    def edit(result: dict[str, Any]) -> None:
        rows = [row for row in result["evaluations"] if row["shift"] != "jpeg"]
        rows = [row for row in rows if (row["shift"], row["severity"]) not in {("pixelate", 4), ("pixelate", 5)}]
        for row in rows:
            if row["shift"] == "saturation":
                row["strength"] = 0.5
        result["evaluations"] = rows

    change(other, edit)
    compared = compare_studies([one, other])
    assert compared.common.left_out == {
        "jpeg": "not in b",
        "pixelate": "severity 4, 5: not in b",
        "saturation": "strengths differ",
    }
    assert compared.common.names == [shift for shift in SHIFTS if shift not in ("jpeg", "saturation")]

    def keep(shift: str, severity: int) -> bool:
        return shift not in ("jpeg", "saturation") and not (shift == "pixelate" and severity > 3)

    arms = compared.arms.set_index("label")
    for ledger in (one, other):
        values = [mean_over(each, keep) for each in read(ledger, "strong")]
        arm = arms.loc[f"{ledger.study} · strong"]
        assert arm["common_mean.mean"] == pytest.approx(np.mean(values), abs=1e-12)
        assert arm["common_mean.sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-12)
        assert (arm["common_mean.n"], arm["complete"], arm["planned"]) == (6, 6, 6)


def test_studies_without_a_common_shift_are_compared_unshifted(tmp_path: Path) -> None:
    one, other = make(tmp_path, "a", BASE), make(tmp_path, "b")

    def keep(names: set[str]) -> Callable[[dict[str, Any]], None]:
        def edit(result: dict[str, Any]) -> None:
            result["evaluations"] = [row for row in result["evaluations"] if row["shift"] in names | {"identity"}]

        return edit

    change(one, keep({"jpeg"}))
    change(other, keep({"pixelate"}))
    compared = compare_studies([one, other])
    assert compared.common.cells == ()
    assert compared.common.left_out == {"jpeg": "not in b", "pixelate": "not in a"}
    differences = compared.pairs[0].differences
    assert differences["common_mean"].mean is None
    assert differences["unshifted"].interval is not None


def test_three_studies_share_what_all_of_them_have(tmp_path: Path) -> None:
    ledgers = [make(tmp_path, name, config) for name, config in (("a", BASE), ("b", LONGER))]
    ledgers.append(make(tmp_path, "c", fingerprint="0" * 16))
    compared = compare_studies(ledgers)
    found = [(pair.first.label, pair.second.label, pair.unpaired is None) for pair in compared.pairs]
    assert found[::2] == [
        ("a · none", "b · none", True),
        ("a · none", "c · none", False),
        ("b · none", "c · none", False),
    ]


def test_arms_of_the_same_levels_are_compared_whatever_the_order_of_the_factors(tmp_path: Path) -> None:
    more = {"pretraining": ("scratch", "imagenet")}
    compared = compare_studies(
        [make(tmp_path, "a", BASE, factors=FACTORS | more), make(tmp_path, "b", factors=more | FACTORS)]
    )
    assert {(pair.first.short, pair.second.short) for pair in compared.pairs} == {
        (f"{augmentation} · {pretraining}", f"{pretraining} · {augmentation}")
        for augmentation, pretraining in itertools.product(FACTORS["augmentation"], more["pretraining"])
    }


def test_named_arms_are_compared_whatever_they_are_called(tmp_path: Path) -> None:
    other = {"augmentation": ("none", "heavy")}
    ledgers = [make(tmp_path, "a", BASE), make(tmp_path, "b", factors=other)]
    assert [pair.first.short for pair in compare_studies(ledgers).pairs] == ["none"]
    compared = compare_studies(ledgers, named=[("strong", "b · heavy")])
    pair = find(compared, "a · strong", "b · heavy")
    assert pair.replicates == (0, 1, 2, 3, 4, 5)
    with pytest.raises(
        StudyError, match=r"--pair: looked for the arm 'heavy' and found a · none; a · strong; name one"
    ):
        compare_studies(ledgers, named=[("heavy", "strong")])
    ledgers.append(make(tmp_path, "c"))
    with pytest.raises(StudyError, match=r"--pair: found 'strong' in several studies; expected one of 'a · strong'"):
        compare_studies(ledgers, named=[("strong", "heavy")])
    with pytest.raises(StudyError, match="both of a, whose own report compares them"):
        compare_studies(ledgers, named=[("a · none", "a · strong")])


def test_settings_that_differ_are_listed(tmp_path: Path) -> None:
    one, other = make(tmp_path, "a", BASE), make(tmp_path, "b")
    plan = other.read_plan()
    plan["versions"]["torch"] = "2.16.0"
    plan["base"]["training"] = {"epochs": 30}
    plan["question"] = "Is that the same?"
    other.root.write_json("plan.json", plan)
    found = compare_studies([one, other]).settings
    assert {row[0]: row[1:] for row in found.itertuples(index=False, name=None)} == {
        "version.torch": ("2.15.0", "2.16.0"),
        "training.epochs": ("absent", "30"),
    }


def test_what_cannot_be_compared_is_one_error(tmp_path: Path) -> None:
    one, other = make(tmp_path, "a", BASE), make(tmp_path, "b")
    with pytest.raises(StudyError, match="found only a; expected two or more"):
        compare_studies([one])
    with pytest.raises(StudyError, match="is named twice"):
        compare_studies([one, Ledger(str(tmp_path), "a")])
    with pytest.raises(StudyError, match="metric 'f1'; expected one of accuracy"):
        compare_studies([one, other], metric="f1")
    with pytest.raises(StudyError, match=r"no plan\.json"):
        compare_studies([one, Ledger(str(tmp_path), "nowhere")])
    plan = other.read_plan()
    plan["data"]["classes"] = ["normal", "glaucoma"]
    other.root.write_json("plan.json", plan)
    empty = make(tmp_path, "c", fate=Fate(missing=12))
    with pytest.raises(StudyError) as caught:
        compare_studies([one, other, empty])
    assert "c has no complete trial" in str(caught.value)
    assert "their classes differ" in str(caught.value)
    assert "glaucoma, normal (b)" in str(caught.value)
