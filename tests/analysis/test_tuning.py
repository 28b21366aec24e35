"""The choice among candidates, from planted results."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from orchestrator.analysis.tuning import Edge, choose_candidates, find_edges, mark_chosen

SCORE, LOSS, RATE = "validation/balanced_accuracy", "validation/nll", "tuned/training.learning_rate"
NAN = float("nan")
NO_CHOICE = "no choice: 1 of 3 candidates complete"


def make(*rows: tuple[str, int, int, str, float, float], metric: str = SCORE) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return trials and plan for (arm, replicate, candidate, state, score, loss)."""
    trials = pd.DataFrame(
        [
            {
                "signature": f"{name}{replicate}{candidate}",
                "name": name,
                "replicate": replicate,
                "candidate": candidate,
                RATE: str(10.0**-candidate),
                "state": state,
                "reason": "oom: no memory" if state == "failed" else "",
                metric: score,
                LOSS: loss,
            }
            for name, replicate, candidate, state, score, loss in rows
        ]
    )
    plan = {"tuning": {"metric": metric}, "trials": [{"signature": each} for each in trials["signature"]]}
    return trials, plan


def choose(*rows: tuple[str, int, int, str, float, float], metric: str = SCORE) -> list[str]:
    return choose_candidates(*make(*rows, metric=metric))[0]["signature"].tolist()


def test_the_best_on_validation_is_chosen_for_every_arm_and_replicate() -> None:
    trials, plan = make(
        ("a", 0, 0, "complete", 0.7, 0.3), ("a", 0, 1, "complete", 0.9, 0.9), ("b", 0, 0, "complete", 0.6, 0.1),
        ("b", 0, 1, "complete", 0.5, 0.1), ("a", 1, 0, "complete", 0.8, 0.3), ("a", 1, 1, "complete", 0.7, 0.3),
    )  # fmt: skip
    chosen, new = choose_candidates(trials, plan)
    assert chosen["signature"].tolist() == ["a01", "b00", "a10"]  # in the order of the plan
    assert [trial["signature"] for trial in new["trials"]] == ["a01", "b00", "a10"]
    assert len(plan["trials"]) == 6
    marked = mark_chosen(trials, chosen)
    assert marked["chosen"].tolist() == [False, True, True, False, True, False]
    assert list(marked)[3:5] == ["candidate", "chosen"]


@pytest.mark.parametrize(
    ("first", "second", "chosen"),
    [
        ((0.9, 0.5), (0.9, 0.4), "a01"),
        ((0.9, 0.4), (0.9, 0.5), "a00"),
        ((0.9, 0.4), (0.9, 0.4), "a00"),
        ((0.8, 0.1), (0.9, 0.4), "a01"),
        ((NAN, 0.1), (0.2, 0.4), "a01"),
        ((NAN, 0.4), (NAN, 0.1), "a01"),
    ],
)
def test_ties_go_to_the_lower_loss_then_to_the_lower_number(
    first: tuple[float, float], second: tuple[float, float], chosen: str
) -> None:
    rows = [("a", 0, 1, "complete", *second), ("a", 0, 0, "complete", *first)]
    assert choose(*rows) == choose(*rows[::-1]) == [chosen]


def test_lower_is_better_where_the_metric_says_so() -> None:
    rows = [("a", 0, 0, "complete", 0.3, 0.3), ("a", 0, 1, "complete", 0.2, 0.3)]
    assert choose(*rows, metric="validation/ece") == ["a01"]


def test_test_data_never_choose() -> None:
    trials, plan = make(("a", 0, 0, "complete", 0.9, 0.3), ("a", 0, 1, "complete", 0.8, 0.3))
    trials = trials.assign(**{"id/balanced_accuracy": [0.1, 0.9], "robustness/mean_balanced_accuracy": [0.1, 0.9]})
    assert choose_candidates(trials, plan)[0]["signature"].tolist() == ["a00"]


@pytest.mark.parametrize(
    ("states", "signature", "state", "reason"),
    [
        (("complete", "failed", "missing"), "a01", "failed", f"{NO_CHOICE}; candidate 1: oom: no memory"),
        (("missing", "complete", "interrupted"), "a02", "interrupted", NO_CHOICE),
        (("complete", "complete", "missing"), "a02", "missing", "no choice: 2 of 3 candidates complete"),
        (("missing", "missing", "missing"), "a00", "missing", "no choice: 0 of 3 candidates complete"),
    ],
)  # fmt: skip
def test_without_all_candidates_there_is_no_choice(
    states: tuple[str, str, str], signature: str, state: str, reason: str
) -> None:
    rows = [("a", 0, n, each, 0.9 if each == "complete" else NAN, 0.1) for n, each in enumerate(states)]
    trials, plan = make(*rows)
    chosen, _ = choose_candidates(trials, plan)
    (row,) = chosen.to_dict("records")
    assert (row["signature"], row["state"], row["reason"]) == (signature, state, reason)
    assert pd.isna(row[SCORE])
    assert not mark_chosen(trials, chosen)["chosen"].any()


def test_a_study_of_which_nothing_is_complete_has_no_metric() -> None:
    trials, plan = make(("a", 0, 0, "missing", NAN, NAN), ("a", 0, 1, "missing", NAN, NAN))
    chosen, _ = choose_candidates(trials.drop(columns=[SCORE, LOSS]), plan)
    assert chosen["signature"].tolist() == ["a00"]


def test_a_choice_at_an_end_in_most_replicates_is_found() -> None:
    """The lowest rate (candidate 2) is best for a in two of three replicates; b takes the middle one."""
    rows = [
        (name, replicate, candidate, "complete", 0.9 if candidate == best else 0.5, 0.1)
        for name, bests in (("a", (2, 2, 1)), ("b", (1, 1, 0)))
        for replicate, best in enumerate(bests)
        for candidate in range(3)
    ]
    trials, plan = make(*rows)
    marked = mark_chosen(trials, choose_candidates(trials, plan)[0])
    assert find_edges(marked) == [Edge("a", "training.learning_rate", "lowest", 2, 3)]
    assert find_edges(marked.assign(**{RATE: "adam"})) == []
    assert find_edges(marked[marked["candidate"] > 0]) == []  # two values have no middle
