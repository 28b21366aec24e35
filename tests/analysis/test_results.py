from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from orchestrator.analysis.balanced_errors import balanced_errors_table
from orchestrator.analysis.differences import compute_differences
from orchestrator.analysis.effects import Effect, compute_effects, effects_table
from orchestrator.analysis.results import Results, load_results, results_sha256
from orchestrator.analysis.tables.arms import arms_table, find_best_arm
from orchestrator.analysis.wording import word_seen
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.heat_maps import heat_map
from orchestrator.report.sections.answer import answer
from orchestrator.report.sections.spread import spread_section
from orchestrator.statistics.paired_tests import holm
from tests.support.synthetic_ledger import FACTORS, SHIFTS, Fate, make_fake_ledger
from trainables.errors import StorageError, StudyError

MEAN = "robustness/mean_balanced_accuracy"


def change(ledger: Ledger, number: int, edit: Any) -> None:
    """Apply ``edit`` to the number-th result, in plan order."""
    folder = ledger.folder("trial", ledger.read_plan()["trials"][number]["signature"])
    result = folder.read_json("result.json")
    edit(result)
    folder.write_json("result.json", result)


def test_every_planned_trial_is_a_row_and_the_states_add_up(tmp_path: Path) -> None:
    results = load_results(make_fake_ledger(tmp_path, fate=Fate(failed=2, interrupted=1, missing=3)))
    assert results.counts == {"planned": 24, "complete": 18, "failed": 2, "interrupted": 1, "missing": 3}
    assert len(results.trials) == 24
    reasons = results.trials.loc[results.trials["state"] == "failed", "reason"]
    assert reasons.str.startswith("diverged: the training loss became nan").all()


def test_factor_order_is_the_study_files(tmp_path: Path) -> None:
    results = load_results(make_fake_ledger(tmp_path))
    assert results.factors == list(FACTORS)
    assert next(iter(results.labels.values())) == "scratch · none · none"


def test_shifts_are_tidy(tmp_path: Path) -> None:
    results = load_results(make_fake_ledger(tmp_path))
    assert len(results.shifts) == 24 * (3 + 5 * len(SHIFTS))
    assert not results.shifts.duplicated(["signature", "set", "shift", "severity"]).any()


def test_arms_have_mean_and_sample_deviation_over_replicates(tmp_path: Path) -> None:
    results = load_results(make_fake_ledger(tmp_path, replicates=3))
    arm = arms_table(results).iloc[0]
    values = results.trials.loc[results.trials["name"] == arm["name"], MEAN]
    assert arm[f"{MEAN}.n"] == 3
    assert arm[f"{MEAN}.mean"] == pytest.approx(values.mean())
    assert arm[f"{MEAN}.sd"] == pytest.approx(np.std(values, ddof=1))


def test_the_best_arm_is_the_first_of_equal_ones_and_never_one_that_was_stopped_early() -> None:
    arms = pd.DataFrame({"name": list("abcd"), "val/auroc.mean": [np.nan, 0.9, 0.8, 0.8], "id/auroc.mean": np.nan})
    results: Any = SimpleNamespace(stopped_arms=frozenset())
    assert find_best_arm(results, arms, "val/auroc") == "b"
    results.stopped_arms = frozenset("b")
    assert find_best_arm(results, arms, "val/auroc") == "c"
    assert find_best_arm(results, arms, "id/auroc") is None
    assert find_best_arm(results, arms, "val/accuracy") is None
    assert find_best_arm(results, arms[:0], "val/auroc") is None


def test_balanced_errors_are_relative_to_the_first_arm(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, replicates=2)

    def edit(result: dict[str, Any]) -> None:
        for row in result["evaluations"]:
            row["metrics"]["balanced_accuracy"] = {0: 0.9, 1: 0.8}.get(row["severity"], 0.4)

    planned = [trial["name"] for trial in ledger.read_plan()["trials"]]
    for number in (number for number, name in enumerate(planned) if name == planned[0]):
        change(ledger, number, edit)
    results = load_results(ledger)
    table = balanced_errors_table(results)
    assert table["name"].tolist() == arms_table(results)["name"].tolist()
    first = table.iloc[0]
    assert (first["be"], first["rbe"], first["be_shifts"], first["be_undefined"]) == (1.0, 1.0, len(SHIFTS), 0)
    assert (first["clean_error"], first["mean_shifted_error"]) == pytest.approx((0.1, (0.2 + 4 * 0.6) / 5))
    other, rows = table.iloc[-1], results.shifts[results.shifts["name"] == table.iloc[-1]["name"]]
    errors = 1 - rows[(rows["set"] == "test") & (rows["severity"] > 0)].groupby("shift")["balanced_accuracy"].mean()
    assert other["be"] == pytest.approx((errors / first["mean_shifted_error"]).mean())


def test_balanced_errors_are_empty_without_a_reference(tmp_path: Path) -> None:
    table = balanced_errors_table(load_results(make_fake_ledger(tmp_path, replicates=1, fate=Fate(missing=24))))
    assert len(table) > 0
    assert list(table) == ["name", "label", "reference"]


def test_hash_ignores_times_and_sees_every_number(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, replicates=1)
    before = results_sha256(load_results(ledger))
    change(ledger, 0, lambda result: result.update(duration_seconds=9e9, finished_ms=1, peak_rss_mib=1.0))
    assert results_sha256(load_results(ledger)) == before
    change(ledger, 0, lambda result: result["evaluations"][7]["metrics"].update(nll=0.123))
    assert results_sha256(load_results(ledger)) != before


def test_trial_that_is_no_longer_planned_is_left_out_and_counted(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, replicates=1)
    plan = ledger.read_plan()
    gone = plan["trials"].pop()
    ledger.root.write_json("plan.json", plan)
    results = load_results(ledger)
    assert results.orphaned == (gone["signature"],)
    assert gone["signature"] not in set(results.shifts["signature"])


def test_damage_counts_where_it_is_needed(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, replicates=1)
    plan = ledger.read_plan()
    gone = plan["trials"].pop()["signature"]
    plan["stages"] = [{"signature": "5" * 16}]
    ledger.root.write_json("plan.json", plan)
    for folder in (ledger.folder("trial", gone), ledger.folder("stage", "5" * 16)):
        folder.write("result.json", b"torn")
    results = load_results(ledger)
    assert results.counts["complete"] == results.counts["planned"]
    assert results.orphaned == (gone,)
    assert len(results.damaged) == 2
    needed = ledger.folder("trial", plan["trials"][0]["signature"])
    needed.write("result.json", b"torn")
    with pytest.raises(StorageError, match=rf"{needed.uri}/result.json is damaged.*robustsweep run"):
        load_results(Ledger(ledger.storage, ledger.study))


def test_trial_whose_stage_failed_says_so(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, replicates=1, fate=Fate(missing=1))
    plan = ledger.read_plan()
    plan["trials"][-1]["needs"] = ["5" * 16]
    plan["stages"] = [{"signature": "5" * 16}]
    ledger.root.write_json("plan.json", plan)
    stage = ledger.folder("stage", "5" * 16)
    stage.write_json("config.json", {"signature": "5" * 16})
    stage.write_json("failure.json", {"reason": "error", "message": "out of memory"})
    assert load_results(ledger).trials.iloc[-1]["reason"] == f"upstream: stage {'5' * 16} failed"


def test_unknown_metric_and_unplanned_study_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="expected one of accuracy, balanced_accuracy, auroc"):
        load_results(make_fake_ledger(tmp_path), "f1")
    with pytest.raises(StudyError, match=r"no plan\.json"):
        load_results(Ledger(str(tmp_path), "another"))


def pair_by_hand(results: Results, measure: str = MEAN) -> pd.Series:
    """Return the differences of strong augmentation, one per replicate: means over the cells that are complete."""
    trials = results.trials
    keys = ["arm/pretraining", "arm/regulariser", "replicate"]
    strong, none = (
        trials[trials["arm/augmentation"] == level].set_index(keys)[measure] for level in ("strong", "none")
    )
    return (strong - none).groupby("replicate").mean()


def test_effect_is_the_mean_over_replicates_of_paired_differences(tmp_path: Path) -> None:
    results = load_results(make_fake_ledger(tmp_path, fate=Fate(missing=1), replicates=6))
    effect = next(e for e in compute_effects(results, MEAN) if e.factor == "augmentation")
    by_hand = pair_by_hand(results)
    found = ttest_1samp(by_hand, 0)
    assert effect.difference == pytest.approx(by_hand.mean())
    assert effect.interval is not None
    assert (effect.interval.low, effect.interval.high) == pytest.approx(tuple(found.confidence_interval(0.95)))
    assert (len(effect.cells), effect.num_missing, effect.num_replicates, effect.units) == (35, 1, 6, "6 replicates")
    assert effect.p_value == 2 / 2**6  # all six have the same sign


def test_replicates_of_one_encoder_are_one_unit_in_effects_and_maps(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, factors={"pretraining": ("scratch", "contrastive", "other")}, replicates=12)
    plan = ledger.read_plan()

    def share(num_encoders: int) -> tuple[Results, Effect, Effect]:
        trials = [
            trial | {"needs": [f"stage{trial['replicate'] % num_encoders}"]}
            if trial["arm"]["pretraining"] == "contrastive"
            else trial
            for trial in plan["trials"]
        ]
        ledger.root.write_json("plan.json", plan | {"trials": trials})
        results = load_results(ledger)
        shared, own = compute_effects(results, MEAN)
        return results, shared, own

    results, one, own = share(1)
    assert (one.units, one.interval, one.p_value) == ("1 independent encoder: at least 5 for an interval", None, None)
    assert (own.units, own.p_value is None) == ("12 replicates", False)
    found = compute_differences(results)
    assert found is not None
    assert found.sharing == ("pretraining=contrastive",)
    assert found.p_corrected.notna().any(axis=1).tolist() == [False, True]
    section = spread_section(results)
    assert section is not None
    assert "No p: replicates share pretrained encoders" in section.body
    _, six, _ = share(6)
    trials = results.trials.set_index(["arm/pretraining", "replicate"])[MEAN]
    by_replicate = (trials["contrastive"] - trials["scratch"]).to_numpy()
    expected = ttest_1samp((by_replicate[:6] + by_replicate[6:]) / 2, 0).confidence_interval(0.95)
    assert (six.units, six.num_replicates) == ("6 independent encoders", 12)
    assert six.interval is not None
    assert (six.interval.low, six.interval.high) == pytest.approx(tuple(expected))
    results, twelve, _ = share(12)
    assert twelve.units == "12 replicates"
    assert (found := compute_differences(results)) is not None
    assert found.sharing == ()


def test_shift_types_in_the_direction_of_an_effect_are_counted_and_not_tested(tmp_path: Path) -> None:
    effects = compute_effects(load_results(make_fake_ledger(tmp_path)), MEAN)
    strong = next(effect for effect in effects if effect.level == "strong")
    assert (strong.num_same_direction, strong.num_shifts) == (len(SHIFTS), len(SHIFTS))
    assert all(0 <= effect.num_same_direction <= effect.num_shifts == len(SHIFTS) for effect in effects)
    assert all(effect.p_value is None and effect.interval is None for effect in effects)  # two replicates
    table = effects_table(effects)
    assert len(table) == 4
    assert table[["low_95", "high_95", "p_sign_flips", "p_holm"]].isna().all(axis=None)
    (other, *_) = compute_effects(load_results(make_fake_ledger(tmp_path)), "id/balanced_accuracy")
    assert other.num_shifts == 0


def test_holm_corrects_all_effects_on_a_measure(tmp_path: Path) -> None:
    effects = compute_effects(load_results(make_fake_ledger(tmp_path, replicates=6)), MEAN)
    assert [effect.p_holm for effect in effects] == holm([effect.p_value for effect in effects])
    assert None not in [effect.p_holm for effect in effects]


@pytest.mark.parametrize("replicates", [1, 4, 5])
def test_below_five_replicates_there_is_no_interval_whatever_the_number_of_cells(
    tmp_path: Path, replicates: int
) -> None:
    effects = compute_effects(load_results(make_fake_ledger(tmp_path, replicates=replicates)), MEAN)
    for effect in effects:
        assert (effect.interval is not None) == (replicates >= 5)
        assert effect.p_value is None
        assert effect.difference is not None
    said = "1 replicate" if replicates == 1 else f"{replicates} replicates"
    assert effects[0].units == said + (": at least 5 for an interval" if replicates < 5 else "")


def test_rounding_errors_are_no_effect(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, factors={"augmentation": ("none", "strong")}, replicates=6)
    for number in range(12):
        value = (0.1 + 0.2) if number % 2 else 0.3
        change(ledger, number, lambda result, value=value: result["metrics"].update({MEAN: value}))
    (effect,) = compute_effects(load_results(ledger), MEAN)
    assert (effect.difference, effect.p_value) == (0.0, None)
    assert effect.interval is not None
    assert effect.interval.low == effect.interval.high == 0


def test_the_answer_claims_no_more_than_the_replicates_bear(tmp_path: Path) -> None:
    few, many = (load_results(make_fake_ledger(tmp_path / str(n), replicates=n)) for n in (2, 6))
    said = [answer(each, arms_table(each), compute_effects(each, MEAN)).statements[2].text for each in (few, many)]
    assert said[0].startswith("2 replicates: at least 5 for an interval.")
    assert "interval contains" not in said[0]
    assert said[1].startswith("95 % t interval ")
    assert "over 6 replicates: what other seeds would give on this test set" in said[1]
    assert all("In that direction under 14 of 14 shift types." in each for each in said)
    assert all("picked as the largest of 4" in each for each in said)


def test_answer_is_chosen_on_validation_and_never_on_test(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, factors={"augmentation": ("none", "strong")})

    def favour(arm: int, name: str) -> None:
        def edit(result: dict[str, Any]) -> None:
            for evaluation in result["evaluations"]:
                if evaluation["set"] == name:
                    evaluation["metrics"]["balanced_accuracy"] = 0.999
            if name == "test":
                result["metrics"][MEAN] = 0.999

        for replicate in range(2):
            change(ledger, 2 * replicate + arm, edit)

    favour(0, "val")
    favour(1, "test")
    results = load_results(ledger)
    words = answer(results, arms_table(results), compute_effects(results, MEAN))
    assert [statement.headline for statement in words.statements[:2]] == ["none", "strong"]
    assert "(oracle)" in words.statements[1].heading


def test_seen_and_unseen_types_are_the_same_for_every_arm(tmp_path: Path) -> None:
    """Strong augmentation contains noise, blur, JPEG and more; no policy contains pixelation."""
    ledger = make_fake_ledger(tmp_path)
    before = load_results(ledger)
    assert not [name for name in before.trials if "seen" in str(name)]  # no arm's config has an augmentation
    strong = before.trials[before.trials["arm/augmentation"] == "strong"]["signature"].iloc[0]
    folder = ledger.folder("trial", strong)
    stored = folder.read_json("config.json")
    policy = {"kind": "strong", "policy": "strong-v0.1.0", "strength": 1.0}
    folder.write_json("config.json", stored | {"config": stored["config"] | {"augmentation": policy}})
    results = load_results(ledger)
    unseen = {"pixelate"}
    seen_names = [name for name in SHIFTS if name not in unseen]
    rows = results.shifts[(results.shifts["set"] == "test") & (results.shifts["severity"] > 0)]
    means = rows.groupby(["signature", "shift"])["balanced_accuracy"].mean().unstack()
    trials = results.complete.set_index("signature")
    for column, names in (("mean_seen", seen_names), ("mean_unseen", sorted(unseen))):
        expected = means[names].mean(axis=1)
        found = trials[f"robustness/{column}_balanced_accuracy"]
        np.testing.assert_allclose(found, expected.reindex(found.index))
    listed = [measure.short for measure in results.measures]
    assert listed.index("unseen by the policies") < listed.index("seen by a policy")


def test_every_shift_says_whether_the_own_policy_contains_it(tmp_path: Path) -> None:
    """One arm has strong augmentation, whose v0.1.0 contains noise and JPEG but no pixelation; the others have none."""
    ledger = make_fake_ledger(tmp_path)
    arm = next(name for name in load_results(ledger).trials["name"] if "strong" in name)
    policy = {"kind": "strong", "policy": "strong-v0.1.0", "strength": 1.0}
    for signature in (ledger.root / "trials").children():
        folder = ledger.folder("trial", signature)
        stored = folder.read_json("config.json")
        if stored["name"] == arm:
            folder.write_json("config.json", stored | {"config": stored["config"] | {"augmentation": policy}})
    results = load_results(ledger)
    rows = results.shifts
    of_arm, is_shifted = rows["name"] == arm, rows["severity"] > 0
    assert set(rows.loc[of_arm & is_shifted & (rows["shift"] == "pixelate"), "policy"]) == {"unseen"}
    assert set(rows.loc[of_arm & is_shifted & (rows["shift"] != "pixelate"), "policy"]) == {"seen"}
    assert set(rows.loc[~of_arm & is_shifted, "policy"]) == {"unseen"}
    assert set(rows.loc[~is_shifted, "policy"]) == {""}
    assert word_seen(results.seen, [arm], "jpeg") == "seen by the policy"
    assert (
        word_seen(results.seen, list(results.seen), "jpeg") == f"seen by the policies of 1 of {len(results.seen)} arms"
    )
    assert word_seen(results.seen, list(results.seen), "pixelate") == "unseen by the policy"
    assert word_seen(results.seen, [arm, "an arm of another version"], "jpeg") == ""
    heat = heat_map(results)
    assert heat is not None
    trace = heat.data[0]
    row, jpeg, pixelate = trace["y"].index(results.labels[arm]), trace["x"].index("jpeg"), trace["x"].index("pixelate")
    assert trace["text"][row][jpeg].endswith("•")
    assert trace["text"][row][pixelate].isdecimal()
    assert trace["customdata"][row][pixelate] == [2, "unseen by the policy"]
    assert sum(text.endswith("•") for line in trace["text"] for text in line) == len(SHIFTS) - 1
    assert "own training policy" in heat.note
