"""CMA-ES without a state: it finds the minimum, and what it draws follows from what is known alone."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.planning.states import COMPLETE
from orchestrator.search.cma_es import RankedPoint, draw_point, get_population_size
from orchestrator.study.search.space import Dimension
from tests.search.test_proposals import crash_everywhere, refuse
from tests.support.instant_search import SPACE, CrashAt, CrashError, Place, names, read

RATE = Dimension("rate", low=1e-4, high=1e-1, log=True)
SHARE = Dimension("share", low=0.0, high=1.0)
COUNT = Dimension("count", low=1, high=9, is_integer=True)
STEPPED = Dimension("stepped", low=0.0, high=1.0, step=0.25)
ALL = [RATE, SHARE, COUNT, STEPPED]

Score = Callable[[Mapping[str, Any]], tuple[float, float] | None]


def bowl(values: Mapping[str, Any]) -> tuple[float, float]:
    """A quadratic on the scale of each dimension."""
    parts = (math.log10(values["rate"]) + 2) / 3, values["share"] - 0.8, values["count"] / 8 - 0.5, values["stepped"]
    return 0.0, sum(part**2 for part in parts)


def draw_many(
    score: Score, count: int, *, dimensions: Sequence[Dimension] = ALL, seed: int = 0
) -> tuple[list[RankedPoint], list[dict[str, Any]]]:
    history: list[RankedPoint] = []
    drawn = []
    for number in range(count):
        values, sampler_state = draw_point(dimensions, history, population_size=8, seed=1000 * seed + number)
        assert all(dimension.contains(values[dimension.name]) for dimension in dimensions)
        history.append((sampler_state, score(values)))
        drawn.append(values)
    return history, drawn


def test_it_beats_chance_on_a_quadratic() -> None:
    def best_of_random(seed: int) -> float:
        random = np.random.default_rng(seed)
        found = []
        for _ in range(48):
            drawn = {"rate": 10 ** random.uniform(-4, -1), "share": random.random()}
            found.append(bowl(drawn | {"count": random.integers(1, 10), "stepped": random.integers(0, 5) / 4})[1])
        return min(found)

    pairs = []
    for seed in range(6):
        _, drawn = draw_many(bowl, 48, seed=seed)
        pairs.append((min(bowl(values)[1] for values in drawn), best_of_random(seed)))
    assert sum(found < chance for found, chance in pairs) >= 5
    assert statistics.median(found for found, _ in pairs) < 0.5 * statistics.median(chance for _, chance in pairs)


def test_a_generation_does_not_depend_on_what_is_not_known_of_it_yet() -> None:
    history, _ = draw_many(bowl, 8)
    unknown = [*history[:3], (history[3][0], None), *history[4:]]
    values, sampler_state = draw_point(ALL, unknown, population_size=8, seed=5)
    assert (values, sampler_state) == draw_point(ALL, [], population_size=8, seed=5)
    assert sampler_state["cmaes:generation"] == 0
    after, sampler_state = draw_point(ALL, history, population_size=8, seed=5)
    assert sampler_state["cmaes:generation"] == 1
    assert after != values


def test_what_is_remembered_survives_json_digit_by_digit() -> None:
    history, _ = draw_many(bowl, 24)
    read_back = [(json.loads(json.dumps(sampler_state)), badness) for sampler_state, badness in history]
    assert draw_point(ALL, read_back, population_size=8, seed=1) == draw_point(ALL, history, population_size=8, seed=1)


@pytest.mark.parametrize("bad", [(math.inf, 0.0), (0.1, -5.0)], ids=["failed", "breaks a constraint"])
def test_failures_and_broken_constraints_are_the_worst(bad: tuple[float, float]) -> None:
    def score(values: Mapping[str, Any]) -> tuple[float, float]:
        return bad if values["share"] > 0.5 else (0.0, -values["share"])

    _, drawn = draw_many(score, 64, dimensions=[SHARE])
    assert sum(values["share"] > 0.5 for values in drawn[:8]) >= 2
    assert 0.4 < statistics.median(values["share"] for values in drawn[-16:]) <= 0.5


def test_it_starts_again_larger_when_it_has_shrunk_to_a_point() -> None:
    history, _ = draw_many(lambda values: (0.0, (values["share"] - 0.3) ** 2), 450, dimensions=[SHARE])
    generations = [sampler_state["cmaes:generation"] for sampler_state, _ in history]
    sizes = {generation: generations.count(generation) for generation in generations}
    assert generations == sorted(generations)
    first = next(generation for generation, size in sizes.items() if size == 16)
    again = [
        sampler_state["cmaes:point"]["share"]
        for sampler_state, _ in history
        if sampler_state["cmaes:generation"] == first
    ]
    assert statistics.stdev(again) > 0.1


def test_wider_ranges_and_new_dimensions_keep_what_is_known() -> None:
    history, _ = draw_many(bowl, 80)
    wider = Dimension("share", low=-1.0, high=1.0)
    new = Dimension("new", low=10.0, high=20.0)
    drawn = [draw_point([*ALL[:1], wider, *ALL[2:], new], history, population_size=8, seed=s)[0] for s in range(20)]
    assert statistics.mean(float(values["share"]) for values in drawn) == pytest.approx(0.8, abs=0.25)
    assert all(10 <= float(values["new"]) <= 20 for values in drawn)


def test_a_generation_is_the_usual_number_in_whole_rounds() -> None:
    assert [get_population_size(count, per_round=1) for count in (1, 2, 5, 10)] == [4, 6, 8, 10]
    assert [get_population_size(2, per_round=each) for each in (3, 4, 10)] == [6, 8, 10]


# ------------------------------------------------------------------ in a search

SEARCH = "search.sampler={kind: cmaes, population_size: 4}"


def generations_of(search: Any) -> list[int]:
    return [proposal.point.sampler_state["trial"]["cmaes:generation"] for proposal in search.proposals]


def test_a_search_that_crashes_at_every_step_proposes_the_same_through_all_generations(tmp_path: Path) -> None:
    study = read(SPACE, SEARCH, "search.parallel=4", "search.num_trials=9")
    undisturbed = Place(tmp_path / "undisturbed", study).run()
    assert generations_of(undisturbed) == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    num_steps = 2 * 2 * 9  # before and after each proposal and each trial
    for at in range(num_steps):
        place = Place(tmp_path / f"crash-{at}", study)
        with pytest.raises(CrashError):
            place.run(CrashAt(at))
        search = place.run()
        assert [each.point for each in search.proposals] == [each.point for each in undisturbed.proposals], at
        assert place.num_run == 9
    search, _ = crash_everywhere(Place(tmp_path / "lives", study))
    assert names(search) == names(undisturbed)


def test_categorical_choices_are_drawn_at_random_and_numbers_by_generation(tmp_path: Path) -> None:
    study = read(SPACE, SEARCH, "search.num_trials=24", "search.parallel=4")
    search = Place(tmp_path, study).run()
    assert {proposal.arm.levels["augmentation"] for proposal in search.proposals[-8:]} == {"none", "strong"}
    assert any("augmentation.strength" not in proposal.point.values for proposal in search.proposals)
    assert all(
        set(proposal.point.sampler_state["trial"]["cmaes:point"]) == {"training.learning_rate", "augmentation.strength"}
        for proposal in search.proposals
    )


def test_an_asynchronous_search_goes_on_while_a_generation_is_not_complete(tmp_path: Path) -> None:
    place = Place(tmp_path, read(SPACE, SEARCH, "search.order=asynchronous"))
    search = place.search()
    works = search.next_works(refuse)
    for _ in range(6):
        place.finish(works[-1])
        search.record_end(works[-1].signature, COMPLETE)
        works[-1:] = search.next_works(refuse)
    assert generations_of(search) == [0] * 6 + [1] * 3
    assert place.run().num_distinct == 10


def test_excluded_combinations_do_not_stop_it(tmp_path: Path) -> None:
    factors = "factors={augmentation: [none, strong], regulariser: [none, dropout]}"
    excluded = "exclude=[{augmentation: none, regulariser: none}, {augmentation: strong, regulariser: dropout}]"
    search = Place(tmp_path, read(SPACE, SEARCH, factors, excluded, "search.parallel=4")).run()
    assert generations_of(search) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
