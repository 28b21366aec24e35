"""CMA-ES on the numbers of a search: where its distribution stands follows from what is known, and from nothing else.

The distribution is moved once per generation, by the results of the points that were drawn from the one before. Each
proposal remembers its generation and its point, so moving through all generations takes milliseconds (``docs/log.md``)
and is done for every question: there is no state to store, and nothing is asked a second time to get it back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.study.search_space import Dimension, Value

if TYPE_CHECKING:
    import cmaes
    import numpy as np

#: Keys of what a proposal remembers.
_GENERATION, _POINT = "cmaes:generation", "cmaes:point"
#: Of the range of each dimension (on its scale); Hansen (2016), The CMA Evolution Strategy: A Tutorial, appendix A.
_INITIAL_SIGMA = 0.3

#: What is known of a point: numbers to be ranked by, lower is better, the first ones first; None: nothing yet.
Badness = tuple[float, ...] | None
#: What a proposal remembers, and how it came out.
Told = tuple[Mapping[str, Any], Badness]


def get_population_size(num_dimensions: int, *, per_round: int) -> int:
    """Return how many points a generation has: the usual number (Hansen 2016, eq. 48), in whole rounds."""
    usual = 4 + math.floor(3 * math.log(num_dimensions))
    return math.ceil(usual / per_round) * per_round


def draw_point(
    dimensions: Sequence[Dimension], history: Sequence[Told], *, population_size: int, seed: int
) -> tuple[dict[str, Value], dict[str, Any]]:
    """Return a value for every dimension, drawn from the distribution that the results lead to, and what to remember.

    Args:
        dimensions: ranges only; all are drawn, whether they apply or not.
        history: all proposals before, in order.
        population_size: how many points move the distribution by one generation; at least 4.
        seed: of this draw.
    """
    generations: dict[Any, list[tuple[tuple[float, ...], Mapping[str, float]]]] = {}
    for memory, badness in history:
        if badness is not None and _POINT in memory:
            generations.setdefault(memory[_GENERATION], []).append((badness, memory[_POINT]))
    optimiser, generation = _make_optimiser(dimensions, population_size), 0
    while len(known := generations.get(generation, [])) >= optimiser.population_size:
        # Only the order counts for CMA-ES, so constraints and failures can be in it (Deb 2000); ties stay in place.
        ranked = sorted(known[: optimiser.population_size], key=lambda each: each[0])
        points = [_locate(dimensions, point, optimiser.mean) for _, point in ranked]
        optimiser.tell([(point, float(rank)) for rank, point in enumerate(points)])
        generation += 1
        # Once it has shrunk to a point: from the start, with twice as many (Auger & Hansen 2005).
        if optimiser.should_stop():
            optimiser = _make_optimiser(dimensions, 2 * optimiser.population_size)
    optimiser.reseed_rng(seed)
    encoded, raw = optimiser.ask()
    values = {each.name: _decode(each, float(x)) for each, x in zip(dimensions, encoded, strict=True)}
    point = {each.name: _scale(each, float(x)) for each, x in zip(dimensions, raw, strict=True)}
    return values, {_GENERATION: generation, _POINT: point}


def _make_optimiser(dimensions: Sequence[Dimension], population_size: int) -> cmaes.CMAwM:
    """Return CMA-ES with margin (Hamano et al. 2022), which keeps all steps of a stepped range within reach."""
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
    """Return a remembered point in the unit cube; where a dimension is new since then, nothing was varied."""
    x = mean.copy()
    for index, dimension in enumerate(dimensions):
        if dimension.name in point:
            x[index] = _unscale(dimension, point[dimension.name])
    return x


def _step(dimension: Dimension) -> float:
    """Return the distance of neighbouring values where the range is 1; 0: none, or not the same everywhere."""
    step = dimension.step or (1 if dimension.is_integer else 0)
    return 0.0 if dimension.log else step / (dimension.high - dimension.low)


def _scale(dimension: Dimension, x: float) -> float:
    """Return where ``x`` of the way from low to high is."""
    if dimension.log:
        return dimension.low * (dimension.high / dimension.low) ** x
    return dimension.low + x * (dimension.high - dimension.low)


def _unscale(dimension: Dimension, value: float) -> float:
    if dimension.log:
        return math.log(value / dimension.low) / math.log(dimension.high / dimension.low)
    return (value - dimension.low) / (dimension.high - dimension.low)


def _decode(dimension: Dimension, x: float) -> Value:
    """Return the value of the dimension that is nearest to ``x`` of the way from low to high."""
    value = _scale(dimension, x)
    if dimension.step is not None:
        value = dimension.low + round((value - dimension.low) / dimension.step) * dimension.step
    value = min(max(value, dimension.low), dimension.high)
    return round(value) if dimension.is_integer else value
