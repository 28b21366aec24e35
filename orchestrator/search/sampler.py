"""Suggestions by Optuna's samplers. The Optuna study is rebuilt in memory for every suggestion.

So a proposal is a function of the study's seed, its own number, and the outcomes of earlier proposals: no state of a
sampler can be lost, and a killed search continues exactly as it would have. Some samplers store values with a trial
(its generation) or with the study (how far the sequence was drawn); these are kept in the proposal and restored.
CMA-ES is our own, because Optuna keeps its state as a pickle: ``cma_es.py`` stores none.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.planning.states import COMPLETE, FAILED, STOPPED
from orchestrator.search.cma_es import draw_point, get_population_size
from orchestrator.search.outcomes import RUNNING, Outcome
from orchestrator.study.grid import Arm
from orchestrator.study.search.config import CMAES, NSGAII, NSGAIII, QMC, TPE, SamplerConfig, SearchConfig
from orchestrator.study.search.space import Dimension, Space, Value
from trainables.errors import StudyError

if TYPE_CHECKING:
    import optuna

#: After this many draws of combinations that the study leaves out, draws are made without a model.
_MAX_EXCLUDED = 100


@dataclass(frozen=True)
class SampledPoint:
    """One proposal as a sampler sees it."""

    #: Dimension → drawn value.
    values: Mapping[str, Value]
    #: Values that the sampler stores with the trial ("trial") and with the study ("study").
    sampler_state: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Suggestion:
    """Configuration to try next."""

    arm: Arm
    point: SampledPoint


def make_distribution(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    """Return the Optuna distribution of a dimension."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.choices:
        return CategoricalDistribution(dimension.choices)
    if dimension.is_integer:
        step = int(dimension.step or 1)
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log, step=step)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def make_trial(
    space: Space, point: SampledPoint, outcome: Outcome, *, marks: Mapping[str, Any] | None = None
) -> optuna.trial.FrozenTrial:
    """Return a proposal as an Optuna trial; ``marks`` become its user attributes."""
    from optuna.trial import TrialState, create_trial

    dimensions = {each.name: each for each in space.factors} | space.dimensions
    states = {RUNNING: TrialState.RUNNING, COMPLETE: TrialState.COMPLETE, FAILED: TrialState.FAIL}
    states[STOPPED] = TrialState.PRUNED
    # A stopped trial gets its last value, as in ``Study.tell``; Optuna never counts it as the best trial.
    values = outcome.values if outcome.state == COMPLETE else list(outcome.curve.values())[-1:]
    return create_trial(
        state=states[outcome.state],
        values=list(values) or None,
        intermediate_values=dict(outcome.curve),
        params=dict(point.values),
        distributions={name: make_distribution(dimensions[name]) for name in point.values},
        user_attrs=dict(marks or {}),
        system_attrs=dict(point.sampler_state["trial"]),
        constraints=dict(outcome.excess) if outcome.state == COMPLETE else None,
    )


def make_directions(search: SearchConfig) -> list[Literal["minimize", "maximize"]]:
    """Return Optuna's direction of each objective."""
    return ["maximize" if each.higher_is_better else "minimize" for each in search.objectives]


def propose(
    search: SearchConfig, space: Space, history: Sequence[tuple[SampledPoint, Outcome]], *, number: int, seed: int
) -> Suggestion:
    """Return the next suggestion.

    Args:
        search: configuration of the search.
        space: space of the search.
        history: all earlier proposals, with their outcomes so far.
        number: number of this proposal.
        seed: seed of the study.

    Raises:
        StudyError: every drawn combination of levels is left out.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="search", directions=make_directions(search))
    for point, outcome in history:
        study.add_trial(make_trial(space, point, outcome))
    own = storage.get_study_id_from_name("search")
    drawn = {key: value for point, _ in history for key, value in point.sampler_state["study"].items()}
    for key, value in drawn.items():
        storage.set_study_system_attr(own, key, value)

    numbers, remembered = _draw_numbers(search, space, history, seed=_make_seed(seed, number))
    for attempt in range(10 * _MAX_EXCLUDED):
        start = _make_seed(seed, number, attempt)
        with warnings.catch_warnings():  # Optuna: the interface of some may change; tests would notice
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = _make_sampler(search.sampler, start, fixed_seed=_make_seed(seed))
            if attempt >= _MAX_EXCLUDED:
                sampler = optuna.samplers.RandomSampler(seed=start)
            study.sampler = optuna.samplers.PartialFixedSampler(numbers, sampler) if numbers else sampler
        trial = study.ask()

        def draw(dimension: Dimension, trial: optuna.Trial = trial) -> Value:
            return _draw(trial, dimension)

        arm = space.build(draw)
        if arm is not None:
            counters = {key: v for key, v in storage.get_study_system_attrs(own).items() if isinstance(v, int)}
            sampler_state = storage.get_all_trials(own)[-1].system_attrs | remembered
            return Suggestion(arm, SampledPoint(dict(trial.params), {"trial": sampler_state, "study": counters}))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    raise StudyError(
        f"looked for a combination of levels that is not left out, and drew {10 * _MAX_EXCLUDED} that are; "
        "exclude less, or make the choice a single factor whose levels are the combinations"
    )


def _draw_numbers(
    search: SearchConfig, space: Space, history: Sequence[tuple[SampledPoint, Outcome]], *, seed: int
) -> tuple[dict[str, Value], dict[str, Any]]:
    """Return the values that CMA-ES draws, and the values to store with them; both are empty for other samplers."""
    if not isinstance(search.sampler, CMAES):
        return {}, {}
    ranges = [each for each in space.dimensions.values() if not each.choices]
    per_round = search.parallel if search.order == "rounds" else 1
    return draw_point(
        ranges,
        [(point.sampler_state["trial"], _compute_ranking_key(search, outcome)) for point, outcome in history],
        population_size=search.sampler.population_size or get_population_size(len(ranges), per_round=per_round),
        seed=seed,
    )


def _compute_ranking_key(search: SearchConfig, outcome: Outcome) -> tuple[float, ...] | None:
    """Return the ranking key of a point, None if its outcome is not known yet. Lower is better.

    First come points that satisfy the constraints, by value; then points that were stopped early, the latest stop
    first; then points that violate constraints, by how much; then failed ones.
    """
    if outcome.state == RUNNING:
        return None
    if outcome.state == FAILED:
        return 3.0, 0.0, 0.0
    sign = -1 if search.objectives[0].higher_is_better else 1
    if outcome.state == STOPPED:
        epoch, value = max(outcome.curve.items(), default=(0, 0.0))
        return 1.0, -float(epoch), sign * value
    excess = sum(max(0.0, each) for each in outcome.excess.values())
    return 2.0 if excess > 0.0 else 0.0, excess, sign * outcome.values[0]


def _draw(trial: optuna.Trial, dimension: Dimension) -> Value:
    name, low, high, log = dimension.name, dimension.low, dimension.high, dimension.log
    if dimension.choices:
        return trial.suggest_categorical(name, dimension.choices)
    if dimension.is_integer:
        return trial.suggest_int(name, int(low), int(high), log=log, step=int(dimension.step or 1))
    return trial.suggest_float(name, low, high, log=log, step=dimension.step)


def _make_seed(*parts: object) -> int:
    """Return a seed in [0, 2³²), a hash of ``parts``."""
    text = "\x1f".join(map(str, ("search", *parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def _make_sampler(config: SamplerConfig, seed: int, *, fixed_seed: int) -> optuna.samplers.BaseSampler:
    """Return a fresh sampler.

    Args:
        config: kind and settings of the sampler.
        seed: seed of this draw.
        fixed_seed: seed of a sequence's scrambling, the same for all draws of the study.
    """
    from optuna import samplers

    random = samplers.RandomSampler(seed=seed)
    if isinstance(config, TPE):
        return samplers.TPESampler(n_startup_trials=config.num_startup, seed=seed)
    if isinstance(config, QMC):
        return samplers.QMCSampler(
            qmc_type=config.sequence,
            scramble=True,
            seed=fixed_seed,
            independent_sampler=random,
            warn_independent_sampling=False,
        )
    if isinstance(config, NSGAII):
        return samplers.NSGAIISampler(population_size=config.population_size, seed=seed)
    if isinstance(config, NSGAIII):
        return samplers.NSGAIIISampler(population_size=config.population_size, seed=seed)
    return random
