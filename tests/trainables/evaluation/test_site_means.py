"""Summaries over external sets against numbers computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from trainables.errors import ConfigError
from trainables.evaluation.metrics import (
    METRICS,
    SITE_AGGREGATES,
    find_metric,
    find_site_aggregate,
    is_higher_better,
    name_over_sites,
)
from trainables.evaluation.robustness import summarise_rows
from trainables.evaluation.site_means import summarise_sites


def row(name: str, shift: str = "identity", **metrics: float) -> dict[str, Any]:
    return {"set": name, "shift": shift, "severity": int(shift != "identity"), "num_images": 7, "metrics": metrics}


ROWS = [
    row("val", accuracy=0.1, nll=9.0),
    row("test", accuracy=0.2, nll=9.0),
    row("test", "blur", accuracy=0.3, nll=9.0),
    row("paris", accuracy=0.9, nll=0.5, auroc=0.7),
    row("lyon", accuracy=0.6, nll=0.1, auroc=0.8),
    row("lille", accuracy=0.6, nll=0.3),
]


def test_every_external_set_counts_once_and_nothing_else_does() -> None:
    found = summarise_sites(ROWS)
    assert found == pytest.approx({
        "external/mean_accuracy": 0.7,
        "external/worst_accuracy": 0.6,
        "external/sd_accuracy": (0.03) ** 0.5,  # ((.2)² + 2 (.1)²) / 2
        "external/mean_nll": 0.3,
        "external/worst_nll": 0.5,  # the largest error
        "external/sd_nll": 0.2,
    })  # fmt: skip  # auroc is undefined in Lille
    assert found.items() <= summarise_rows(ROWS).items()


def test_one_site_has_no_spread_and_none_has_no_mean() -> None:
    assert summarise_sites(ROWS[:4]) == {
        "external/mean_accuracy": 0.9, "external/mean_nll": 0.5, "external/mean_auroc": 0.7,
    }  # fmt: skip
    assert summarise_sites(ROWS[:3]) == {}


@pytest.mark.parametrize("aggregate", SITE_AGGREGATES)
def test_names_are_read_back(aggregate: str) -> None:
    for metric in METRICS:
        name = name_over_sites(aggregate, metric)
        assert find_site_aggregate(name) == aggregate
        assert find_metric(name).name == metric
        assert is_higher_better(name) == (METRICS[metric].higher_is_better and aggregate != "sd")


def test_a_set_may_be_called_like_a_summary() -> None:
    assert find_site_aggregate("external/mean_x/accuracy") is None
    assert find_metric("external/mean_x/accuracy").name == "accuracy"
    with pytest.raises(ConfigError, match="looked for the metric"):
        find_metric("external/sd_aurc")
