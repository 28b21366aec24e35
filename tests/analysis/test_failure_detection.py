"""Rankings of confidence scores on rows whose means, ties and families are known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.special

from orchestrator.analysis.failure_detection import (
    DetectionRows,
    describe_ranking,
    failure_table,
    load_detection_rows,
    rank_scores,
    tabulate_conditions,
    tabulate_means,
    tabulate_ood,
)
from orchestrator.analysis.predictions.ensemble import score_ensemble
from orchestrator.analysis.tables.arms import arms_table
from orchestrator.report.sections.detection.scores import failure_section
from tests.support.trained_study import TrainedStudy
from trainables.evaluation.confidence import compute_augrc
from trainables.evaluation.predictions import load_predictions

TITLES = {"good": "Good", "bad": "Bad", "like": "Like"}


def make_results(num_replicates: int) -> Any:
    trials = pd.DataFrame({"name": "a", "replicate": range(num_replicates)})
    return SimpleNamespace(
        trials=trials,
        group_replicates=lambda own: {int(each): int(each) for each in own["replicate"]},
        families={"noise": ["gaussian_noise", "shot_noise"], "blur": ["defocus_blur"]},
    )


def make_rows(values: dict[str, float], num_replicates: int = 6, *, flip: tuple[str, ...] = ()) -> DetectionRows:
    """Return rows whose AUGRC is the score's value, plus what every replicate has in common, plus the severity."""
    common = np.random.default_rng(0).normal(0, 0.05, num_replicates)
    own = np.random.default_rng(1).normal(0, 0.001, (num_replicates, len(values)))
    rows = []
    for replicate in range(num_replicates):
        for column, (score, value) in enumerate(values.items()):
            for where, shift, severity in (
                ("val", "identity", 0), ("test", "identity", 0), ("test", "gaussian_noise", 1),
                ("test", "gaussian_noise", 3), ("test", "shot_noise", 3), ("test", "defocus_blur", 3),
                ("clinic", "identity", 0),
            ):  # fmt: skip
                sign = -1 if where == "clinic" and score in flip else 1
                augrc = 0.2 + sign * value + common[replicate] + own[replicate, column] + 0.01 * severity
                rows.append(("s", "a", replicate, score, where, shift, severity, augrc))
    columns = ["signature", "name", "replicate", "score", "set", "shift", "severity", "augrc"]
    return DetectionRows(pd.DataFrame(rows, columns=columns), pd.DataFrame(), {})


def test_conditions_are_the_test_set_all_shifts_families_and_external_sets() -> None:
    rows = make_rows({"good": 0.0})
    table = tabulate_conditions(make_results(6), rows.failures, "augrc")
    assert list(table.columns.get_level_values("condition")) == [
        "in distribution", "all shifts", "noise", "blur", "clinic",
    ]  # fmt: skip
    base = table["in distribution"]["good"]
    # Severities, then shifts, then types: .01 · mean(mean(1, 3), 3, 3), and of the family .01 · mean(2, 3).
    assert (table["all shifts"]["good"] - base).to_numpy() == pytest.approx(0.01 * (2 + 3 + 3) / 3)
    assert (table["noise"]["good"] - base).to_numpy() == pytest.approx(0.025)
    assert (table["clinic"]["good"] - base).to_numpy() == pytest.approx(0.0)


def test_paired_intervals_tell_scores_apart_that_their_own_intervals_do_not() -> None:
    ranking = rank_scores(make_results(6), make_rows({"good": 0.0, "bad": 0.02, "like": 0.00002}), "a")
    good, bad = (ranking.standings[score]["in distribution"] for score in ("good", "bad"))
    assert good.interval is not None
    assert good.interval.high > bad.mean  # what replicates have in common widens each
    assert {good.rank, ranking.standings["like"]["in distribution"].rank} == {1, 2}
    assert bad.rank == 3
    assert all(set(names) == {"good", "like"} for names in ranking.tied.values())


def test_nothing_is_told_with_fewer_than_five_models() -> None:
    ranking = rank_scores(make_results(4), make_rows({"good": 0.0, "bad": 0.02}, 4), "a")
    assert ranking.standings["good"]["noise"].interval is None
    assert ranking.tied["noise"] == ("good", "bad")
    assert "4 independently trained models are too few" in describe_ranking(ranking, TITLES)[0]


def test_a_sentence_says_no_more_than_the_tests() -> None:
    everywhere = rank_scores(make_results(6), make_rows({"good": 0.0, "bad": 0.02}), "a")
    assert describe_ranking(everywhere, TITLES) == [
        "In distribution: Good has the lowest AUGRC, told from every other score.",
        "All shifts: Good has the lowest AUGRC, told from every other score.",
        "It has the lowest mean under all 5 conditions, and is told from every other score under all of them.",
    ]
    elsewhere = rank_scores(make_results(6), make_rows({"good": 0.0, "bad": 0.02}, flip=("bad",)), "a")
    assert elsewhere.leaders["clinic"] == "bad"
    assert describe_ranking(elsewhere, TITLES)[-1] == (
        "No score has the lowest mean everywhere; of 5 conditions: Good under 4, Bad under 1."
    )


def test_means_of_arms_come_from_headline_numbers() -> None:
    complete = pd.DataFrame(
        {
            "name": ["a", "a", "b"],
            "failure/msr/mean_shifted_augrc": [0.1, 0.3, 0.5],
            "failure/pytorch_ood.SHE/mean_shifted_augrc": [0.2, 0.2, np.nan],
            "failure/msr/augrc": [0.0, 0.0, 0.0],
        }
    )
    means = tabulate_means(SimpleNamespace(complete=complete))  # type: ignore[arg-type]
    assert means.loc["a", "msr"] == pytest.approx(0.2)
    assert list(means.columns) == ["msr", "pytorch_ood.SHE"]
    assert tabulate_means(SimpleNamespace(complete=complete[["name"]])).empty  # type: ignore[arg-type]


def test_foreign_sets_come_first_and_shifts_are_one_covariate_set() -> None:
    rows = []
    for replicate in range(2):
        for where, shift, role, auroc in (
            ("test", "gaussian_noise", "covariate", 0.6), ("test", "defocus_blur", "covariate", 0.8),
            ("clinic", "identity", "covariate", 0.7), ("digits", "identity", "far", 0.9),
            ("held_out", "identity", "near", 0.75),
        ):  # fmt: skip
            rows.append(("a", replicate, "knn", where, shift, 3, role, auroc + 0.1 * replicate))
    columns = ["name", "replicate", "score", "set", "shift", "severity", "role", "auroc"]
    found = tabulate_ood(make_results(2), DetectionRows(pd.DataFrame(), pd.DataFrame(rows, columns=columns), {}), "a")
    assert found is not None
    assert found.roles == {"held_out": "near", "digits": "far", "all shifts": "covariate", "clinic": "covariate"}
    assert found.values["knn", "all shifts"]["auroc"] == pytest.approx([0.7, 0.8])
    assert found.values["knn", "digits"]["auroc"] == pytest.approx([0.9, 1.0])


def test_an_ensemble_is_one_unit_under_every_condition_of_its_models(trained_study: TrainedStudy) -> None:
    results, ledger = trained_study.results, trained_study.ledger
    rows, arms = load_detection_rows(results, ledger), arms_table(results)
    assert rows is not None
    arm = str(arms["name"].iloc[int(arms["val/balanced_accuracy.mean"].argmax())])
    signatures = results.complete.loc[results.complete["name"] == arm, "signature"].tolist()

    def measure(name: str, *keys: str) -> float:
        """Return the mean AUGRC of the largest mean probability under some severities."""
        members = [load_predictions(ledger.folder("trial", signature), name) for signature in signatures]
        found = []
        for key in keys:
            shares = np.mean(
                [scipy.special.softmax(each.of(key).astype(np.float64), axis=1) for each in members], axis=0
            )
            found.append(compute_augrc(shares.max(axis=1), shares.argmax(axis=1) == members[0].labels))
        return float(np.mean(found))

    (site,) = results.external_sets
    noise, contrast = (("gaussian_noise/1", "gaussian_noise/5"), ("contrast_down/1", "contrast_down/5"))
    families = {kinds[0]: name for name, kinds in results.families.items()}
    expected = {
        "in distribution": measure("test", "identity/0"),
        "all shifts": measure("test", *noise, *contrast),
        families["gaussian_noise"]: measure("test", *noise),
        families["contrast_down"]: measure("test", *contrast),
        site: measure(site, "identity/0"),
    }
    ensemble = score_ensemble(results, ledger, rows, arm)
    assert ensemble is not None
    assert ensemble.num_members == 2
    assert ensemble.augrc["ensemble_msr"] == pytest.approx(expected)
    table = failure_table(results, rows, ensemble)
    own = table[table["score"].str.startswith("ensemble_")]
    assert set(own["name"]) == {arm}
    assert set(own["condition"]) == set(rank_scores(results, rows, arm).conditions) == set(expected)
    assert set(own["n"]) == {1}
    assert own[["low", "high", "rank", "not_told_from_best"]].isna().all(axis=None)
    section = failure_section(results, ledger, rows, ensemble, arms)
    assert section is not None
    (row,) = (each for each in section.body.split("<tr>") if "deep ensemble, MSR" in each)
    assert [f">{1000 * value:.1f}<" in row for value in expected.values()] == [True] * 5
    assert "no interval over replicates" in section.body
    assert score_ensemble(results, ledger, rows, None) is None
