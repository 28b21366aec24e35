"""CMA-ES over the numeric ranges of a search, its distribution computed from the stored proposals and their outcomes.

The distribution is updated once per generation, by the outcomes of the points that were drawn in that generation. Each
proposal stores its generation and its point, so repeating all updates takes milliseconds (``docs/log.md``) and is done
for every new proposal: the distribution itself is never stored, and no earlier point is drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.study.search.space import Dimension, Value

if TYPE_CHECKING:
    import cmaes
    import numpy as np

#: Keys under which a proposal stores its generation and its point.
_GENERATION, _POINT = "cmaes:generation", "cmaes:point"
#: Fraction of each dimension's range (on its scale); Hansen (2016), The CMA Evolution Strategy: A Tutorial, appendix A.
_INITIAL_SIGMA = 0.3

#: Ranking key of a point: lower is better, earlier numbers first. None if its outcome is not known yet.
RankingKey = tuple[float, ...] | None
#: Values that the sampler stored with a proposal, and the proposal's ranking key.
RankedPoint = tuple[Mapping[str, Any], RankingKey]


def get_population_size(num_dimensions: int, *, per_round: int) -> int:
    """Return the number of points per generation: the usual one (Hansen 2016, eq. 48), rounded up to whole rounds."""
    usual = 4 + math.floor(3 * math.log(num_dimensions))
    return math.ceil(usual / per_round) * per_round


def draw_point(
    dimensions: Sequence[Dimension], history: Sequence[RankedPoint], *, population_size: int, seed: int
) -> tuple[dict[str, Value], dict[str, Any]]:
    """Return a value for every dimension, drawn from the updated distribution, and the values to store with them.

    Args:
        dimensions: numeric ranges; all are drawn, whether or not they apply to the arm.
        history: all earlier proposals, in order.
        population_size: number of points per generation; at least 4.
        seed: seed of this draw.
    """
    generations: dict[Any, list[tuple[tuple[float, ...], Mapping[str, float]]]] = {}
    for sampler_state, badness in history:
        if badness is not None and _POINT in sampler_state:
            generations.setdefault(sampler_state[_GENERATION], []).append((badness, sampler_state[_POINT]))
    optimiser, generation = _make_optimiser(dimensions, population_size), 0
    while len(known := generations.get(generation, [])) >= optimiser.population_size:
        # CMA-ES uses only the order, so it can include constraints and failures (Deb 2000); ties keep their order.
        ranked = sorted(known[: optimiser.population_size], key=lambda each: each[0])
        points = [_locate(dimensions, point, optimiser.mean) for _, point in ranked]
        optimiser.tell([(point, float(rank)) for rank, point in enumerate(points)])
        generation += 1
        # Restart a distribution that has shrunk to a point, with twice the population (Auger & Hansen 2005).
        if optimiser.should_stop():
            optimiser = _make_optimiser(dimensions, 2 * optimiser.population_size)
    optimiser.reseed_rng(seed)
    encoded, raw = optimiser.ask()
    values = {each.name: _decode(each, float(x)) for each, x in zip(dimensions, encoded, strict=True)}
    point = {each.name: _scale(each, float(x)) for each, x in zip(dimensions, raw, strict=True)}
    return values, {_GENERATION: generation, _POINT: point}


def _make_optimiser(dimensions: Sequence[Dimension], population_size: int) -> cmaes.CMAwM:
    """Return CMA-ES with margin (Hamano et al. 2022), which keeps every step of a stepped range reachable."""
    import cmaes
    import numpy as np

    return cmaes.CMAwM(
        mean=np.full(len(dimensions), 0.5),
        sigma=_INITIAL_SIGMA,
        bounds=np.tile([0.0, 1.0], (len(dimensions), 1)),
        steps=np.array([_step(each) for each in dimensions]),
        population_size=population_size,
    )


def _locate(dimensions: Sequence[Dimension], point: Mapping[str, float], mean: np.ndarray) -> np.ndarray:
    """Return a stored point in the unit cube. A dimension that was added since then gets its present mean."""
    x = mean.copy()
    for index, dimension in enumerate(dimensions):
        if dimension.name in point:
            x[index] = _unscale(dimension, point[dimension.name])
    return x


def _step(dimension: Dimension) -> float:
    """Return the distance between neighbouring values on a range of 1, 0 if it is continuous or logarithmic."""
    step = dimension.step or (1 if dimension.is_integer else 0)
    return 0.0 if dimension.log else step / (dimension.high - dimension.low)


def _scale(dimension: Dimension, x: float) -> float:
    """Return the value at fraction ``x`` of the way from low to high, on the dimension's scale."""
    if dimension.log:
        return dimension.low * (dimension.high / dimension.low) ** x
    return dimension.low + x * (dimension.high - dimension.low)


def _unscale(dimension: Dimension, value: float) -> float:
    if dimension.log:
        return math.log(value / dimension.low) / math.log(dimension.high / dimension.low)
    return (value - dimension.low) / (dimension.high - dimension.low)


def _decode(dimension: Dimension, x: float) -> Value:
    """Return the allowed value nearest to fraction ``x`` of the way from low to high."""
    value = _scale(dimension, x)
    if dimension.step is not None:
        value = dimension.low + round((value - dimension.low) / dimension.step) * dimension.step
    value = min(max(value, dimension.low), dimension.high)
    return round(value) if dimension.is_integer else value
