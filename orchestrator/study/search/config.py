"""The ``search`` section of a study file: objectives, constraints, sampler, stopping. Space: ``search_space.py``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from orchestrator.study.grid import format_label
from trainables.evaluation.metrics import (
    AGGREGATES,
    MAIN_METRICS,
    METRICS,
    NUM_PARAMETERS,
    SEGMENTATION_METRICS,
    find_detection,
    find_metric,
    is_higher_better,
    name_over_shifts,
)
from trainables.frozen import Frozen, PositiveInt, SelectBy

#: Metrics of an evaluation of all classes together, of any task.
_EVALUATED = METRICS | SEGMENTATION_METRICS
_NAMES = "|".join(_EVALUATED)
_OVER_SHIFTS = "|".join(name_over_shifts(aggregate, metric) for aggregate in AGGREGATES for metric in _EVALUATED)
#: Pattern of the headline numbers of a trial.
_HEADLINE = re.compile(
    rf"{NUM_PARAMETERS.name}|(validation|id|calibration|external/[^/]+)/({_NAMES})|(validation/)?({_OVER_SHIFTS})"
)
#: Headline numbers over shifted validation images that are known after each epoch if one of them chooses the epoch.
SEEN_OVER_SHIFTS = tuple(f"validation/{name}" for name in get_args(SelectBy) if "/" in name)
#: Headline numbers known after each epoch, on the validation images.
_SEEN = (
    *(f"validation/{name}" for name, metric in METRICS.items() if not metric.is_fitted),
    *SEEN_OVER_SHIFTS,
    f"validation/{MAIN_METRICS['segmentation']}",
)
#: Prefixes of metrics that reveal nothing about test images.
_VALIDATION = ("validation/", NUM_PARAMETERS.name)


def check_metric(name: str) -> str:
    """Return ``name``; ValueError if it is not a headline number of a trial."""
    if not _HEADLINE.fullmatch(name) and find_detection(name) is None:
        raise ValueError(
            f"found {name!r}, expected a headline number of a trial, such as validation/balanced_accuracy, "
            "validation/robustness/mean_auroc, robustness/worst_shift_balanced_accuracy, calibration/ece, "
            "external/<set>/auroc, or num_parameters"
        )
    return name


class _Measured(Frozen):
    metric: str = Field(description="A headline number of a trial, as in MLflow, e.g. validation/balanced_accuracy.")
    oracle: bool = Field(
        False, description="Has to be true for anything but in-distribution validation: no honest choice knows it."
    )

    _check = field_validator("metric")(check_metric)

    @model_validator(mode="after")
    def _is_asked_for(self) -> _Measured:
        if not self.is_validation and not self.oracle:
            raise ValueError(
                f"found {self.metric}, which is not in-distribution validation: what is chosen by it is an oracle's "
                "choice, and its score no estimate; take validation/…, or set oracle: true to have it so, labelled"
            )
        if self.is_validation and self.oracle:
            raise ValueError(f"found oracle: true, and {self.metric} is in-distribution validation; take it away")
        return self

    @property
    def is_validation(self) -> bool:
        """Whether a choice may be based on this metric without being an oracle's."""
        return self.metric.startswith(_VALIDATION)

    @property
    def higher_is_better(self) -> bool:
        """Whether the metric is maximised."""
        return is_higher_better(self.metric)


class Objective(_Measured):
    """A metric that the search improves; the metric's name decides the direction."""


class Constraint(_Measured):
    """Bounds on a metric of an acceptable trial: at most, at least, or both."""

    at_most: float | None = Field(None, description="Upper bound, in the metric's units; null: none.")
    at_least: float | None = Field(None, description="Lower bound, in the metric's units; null: none.")

    @model_validator(mode="after")
    def _has_a_bound(self) -> Constraint:
        if self.at_most is None and self.at_least is None:
            raise ValueError("found no bound, expected at_most or at_least")
        metric = find_metric(self.metric)
        low = metric.low if self.at_least is None else max(metric.low, self.at_least)
        high = metric.high if self.at_most is None else min(metric.high, self.at_most)
        if low > high:
            raise ValueError(
                f"found at_least {self.at_least} and at_most {self.at_most}, which no {metric.title} can keep to; it "
                f"is from {metric.low:g} to {metric.high:g}"
            )
        return self

    def compute_excess(self, value: float) -> float:
        """Return by how much ``value`` violates the constraint, 0 or less if it satisfies it."""
        above = -math.inf if self.at_most is None else value - self.at_most
        below = -math.inf if self.at_least is None else self.at_least - value
        return max(above, below)


class Parameter(Frozen):
    """A dimension of the search: a range or choices."""

    low: int | float | None = Field(None, description="Lowest value.")
    high: int | float | None = Field(None, description="Highest value.")
    log: bool = Field(False, description="Drawn on a logarithmic scale.")
    step: int | float | None = Field(None, gt=0, description="Only low, low + step, …; not with log.")
    choices: list[str | int | float | bool | None] | None = Field(None, min_length=1, description="Instead of a range.")

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Parameter:
        if (self.choices is None) == (self.low is None and self.high is None):
            raise ValueError("expected either low and high, or choices")
        if self.choices is not None:
            labels = [format_label(choice) for choice in self.choices]
            if self.log or self.step is not None or len(set(labels)) < len(labels):
                raise ValueError("expected choices that differ, without log and step")
            return self
        if self.low is None or self.high is None or not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"found low {self.low} and high {self.high}, expected two numbers, low below high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("found log, expected low above 0 and no step")
        if not is_multiple(self.high - self.low, self.step):
            raise ValueError(f"found step {self.step}, expected one that leads from {self.low} to {self.high}")
        return self


class TPE(Frozen):
    """Tree-structured Parzen estimator (Bergstra et al. 2011, Watanabe 2023)."""

    kind: Literal["tpe"] = "tpe"
    num_startup: PositiveInt = Field(10, description="Random trials before the model is used.")


class RandomSearch(Frozen):
    """Independent draws."""

    kind: Literal["random"] = "random"


class QMC(Frozen):
    """Quasi-Monte Carlo: a scrambled low-discrepancy sequence (Bergstra & Bengio 2012)."""

    kind: Literal["qmc"] = "qmc"
    sequence: Literal["sobol", "halton"] = Field("sobol", description="Low-discrepancy sequence.")


class NSGAII(Frozen):
    """Elitist genetic algorithm for several objectives (Deb et al. 2002)."""

    kind: Literal["nsga_ii"] = "nsga_ii"
    population_size: Annotated[int, Field(ge=2)] = Field(50, description="Configurations of a generation.")


class NSGAIII(Frozen):
    """NSGA-II with reference points, for more than three objectives (Deb & Jain 2014)."""

    kind: Literal["nsga_iii"] = "nsga_iii"
    population_size: Annotated[int, Field(ge=2)] = Field(50, description="Configurations of a generation.")


class CMAES(Frozen):
    """Covariance matrix adaptation evolution strategy (Hansen 2016), with margin (Hamano et al. 2022); ranges only."""

    kind: Literal["cmaes"] = "cmaes"
    population_size: Annotated[int, Field(ge=4)] | None = Field(
        None, description="Of a generation; null: 4 + 3 ln(ranges), and in rounds a multiple of parallel."
    )


SamplerConfig = Annotated[TPE | RandomSearch | QMC | NSGAII | NSGAIII | CMAES, Field(discriminator="kind")]


class _EarlyStopping(Frozen):
    grace_epochs: PositiveInt = Field(1, description="No trial is stopped before it was trained this long.")
    metric: str | None = Field(
        None, description="What trials are judged by, e.g. validation/auroc; null: the objective of the search."
    )

    @field_validator("metric")
    @classmethod
    def _is_seen(cls, name: str | None) -> str | None:
        if name is not None and find_epoch_metric(name) is None:
            raise ValueError(f"found {name!r}, expected what is known after each epoch: {', '.join(_SEEN)}")
        return name


class ASHA(_EarlyStopping):
    """Asynchronous successive halving (Li et al. 2020), as implemented in Ray Tune."""

    kind: Literal["asha"] = "asha"
    reduction_factor: float = Field(
        3.0, gt=1, le=100, description="The best 1/reduction_factor of a rung go on; the next is so many times later."
    )
    brackets: PositiveInt = Field(
        1, description="Several: some trials have their first rung later, reduction_factor times for each bracket."
    )


class MedianStopping(_EarlyStopping):
    """Stops a trial whose best is worse than the median of the others' running means (Golovin et al. 2017)."""

    kind: Literal["median"] = "median"
    min_samples: PositiveInt = Field(3, description="Others that have to have come as far.")


EarlyStoppingConfig = Annotated[ASHA | MedianStopping, Field(discriminator="kind")]


def find_epoch_metric(name: str) -> str | None:
    """Return the name of a headline number in the record of an epoch, None if it is not known after each epoch."""
    if name not in _SEEN:
        return None
    return "val/loss" if name == "validation/nll" else name.replace("validation/", "val/")


class SearchConfig(Frozen):
    """An adaptive search instead of the full grid. Factors are categorical dimensions of the search."""

    space: dict[str, Parameter] = Field({}, description="Dotted field of the trial: a range or choices.")
    objectives: Annotated[list[Objective], Field(min_length=1, max_length=10)] = Field(
        [Objective(metric="validation/balanced_accuracy")], description="Several: the Pareto front is searched for."
    )
    constraints: list[Constraint] = Field([], max_length=20, description="What a trial has to keep to.")
    num_trials: int = Field(
        ge=1, le=10_000, description="Different configurations; one that is proposed again is answered from the ledger."
    )
    parallel: PositiveInt = Field(4, description="Configurations under way at once.")
    order: Literal["rounds", "asynchronous"] = Field(
        "rounds",
        description="rounds: proposals are made together once all before are known, so that the search can be "
        "reproduced; asynchronous: the next one as soon as one is known.",
    )
    aggregate: Literal["mean", "worst", "lower_bound"] = Field(
        "mean",
        description="Over replicates; worst: the worst of them; lower_bound: the mean made worse by its standard error "
        "(needs two replicates).",
    )
    sampler: SamplerConfig = Field(TPE(), description="What proposes the next configurations.")
    early_stopping: EarlyStoppingConfig | None = Field(
        None, description="Trials that fall behind are not trained to their end; null: all are."
    )

    @model_validator(mode="after")
    def _fits(self) -> SearchConfig:
        names = [objective.metric for objective in self.objectives]
        if len(set(names)) < len(names):
            raise ValueError("found an objective twice; keep one")
        if self.early_stopping is not None and len(names) > 1:
            raise ValueError(f"found early_stopping with {len(names)} objectives, expected 1: it ranks by one number")
        if self.early_stopping is not None and find_epoch_metric(self.stopping_metric) is None:
            raise ValueError(
                f"found early_stopping with the objective {names[0]}, which is not known after each epoch; give "
                f"early_stopping.metric: one of {', '.join(_SEEN)}"
            )
        return self

    @property
    def stopping_metric(self) -> str:
        """Headline number that decides which trials are stopped early."""
        own = None if self.early_stopping is None else self.early_stopping.metric
        return own or self.objectives[0].metric

    @property
    def is_oracle(self) -> bool:
        """Whether an objective or constraint is an oracle's metric."""
        return not all(measured.is_validation for measured in (*self.objectives, *self.constraints))

    @property
    def metrics(self) -> list[str]:
        """Headline numbers of all objectives and constraints, each once."""
        return list(dict.fromkeys(measured.metric for measured in (*self.objectives, *self.constraints)))


def expand_sampler(tree: Mapping[str, Any]) -> None:
    """Expand the short forms of a search in place: ``sampler: tpe`` becomes ``sampler: {kind: tpe}``."""
    search = tree.get("search")
    for key in ("sampler", "early_stopping"):
        if isinstance(search, dict) and isinstance(search.get(key), str):
            search[key] = {"kind": search[key]}


def is_multiple(distance: float, step: float | None) -> bool:
    """Return whether ``distance`` is a multiple of ``step``, up to rounding; always true if ``step`` is None."""
    return step is None or abs(distance / step - round(distance / step)) < 1e-8


def aggregate(values: Sequence[float], how: str, *, higher_is_better: bool) -> float:
    """Return the value that a search uses for a configuration.

    Args:
        values: one value per replicate.
        how: ``mean``; ``worst``, the worst replicate; or ``lower_bound``, the mean made worse by its standard error.
        higher_is_better: direction of the metric.
    """
    mean = sum(values) / len(values)
    if how == "worst":
        return min(values) if higher_is_better else max(values)
    if how == "mean" or len(values) < 2:
        return mean
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    return mean - error if higher_is_better else mean + error
