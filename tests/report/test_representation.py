from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.analysis.predictions.layers import load_arm_layers, tabulate_statistics
from orchestrator.analysis.predictions.similarity import compare_arms
from orchestrator.analysis.results import load_results
from orchestrator.report.page import Section
from orchestrator.report.sections.representation.section import representation_section
from tests.support.synthetic_ledger import make_fake_ledger
from tests.support.trained_study import TrainedStudy
from trainables.evaluation.metrics import REPRESENTATION_METRICS
from trainables.evaluation.predictions import load_predictions
from trainables.evaluation.representation.similarity import compare_features

#: Described layers, of which the convolutions (the stem before its pooling ends with one) are not compared; layer4 has
#: a single position.
CONVOLUTIONS = ["conv1.0", "conv1.6"]
COMPARED = ["layer1", "layer2", "layer3", "penultimate"]


@pytest.fixture(scope="module")
def section(trained_study: TrainedStudy) -> Section:
    found = representation_section(trained_study.results, trained_study.ledger)
    assert found is not None
    return found


def figures(section: Section) -> dict[str, dict]:
    found = re.findall(r'<script type="application/json" id="([^"]+)">(.*?)</script>', section.body)
    return {name: json.loads(payload) for name, payload in found}


def test_arms_are_compared_over_pairs_of_different_replicates(trained_study: TrainedStudy) -> None:
    results, ledger = trained_study.results, trained_study.ledger
    found = compare_arms(results, ledger)
    assert found is not None
    features = {
        (name, replicate): load_predictions(ledger.folder("trial", signature), "test").features.astype(np.float64)
        for name, replicate, signature in results.complete[["name", "replicate", "signature"]].itertuples(index=False)
    }
    first, second = found.arms
    pairs = [((first, 0), (second, 1)), ((first, 1), (second, 0))]
    expected = np.mean([compare_features(features[a], features[b]) for a, b in pairs], axis=0)
    assert (found.cka[0, 1], found.procrustes[0, 1]) == pytest.approx(expected, abs=1e-9)
    assert found.cka[1, 0] == found.cka[0, 1]
    for number, arm in enumerate(found.arms):
        expected = compare_features(features[arm, 0], features[arm, 1])
        assert (found.cka[number, number], found.procrustes[number, number]) == pytest.approx(expected, abs=1e-9)
    assert found.num_pairs.tolist() == [[1, 2], [2, 1]]
    assert (found.num_images, found.num_left_out) == (len(features[first, 0]), 0)


def test_what_an_arm_stores_is_averaged_over_its_trials(trained_study: TrainedStudy) -> None:
    results, ledger = trained_study.results, trained_study.ledger
    arms = load_arm_layers(results, ledger)
    assert len(arms) == 2
    for name, arm in arms.items():
        own = results.complete[results.complete["name"] == name]["signature"]
        stored = [json.loads(ledger.folder("trial", each).read("representation.json")) for each in own]
        assert list(arm.spectra) == [*stored[0]["layers"]] == CONVOLUTIONS + COMPARED
        assert list(arm.compared) == COMPARED
        np.testing.assert_allclose(arm.cka_initial, np.mean([each["cka_initial"] for each in stored], axis=0))
        values = [np.array(each["layers"]["layer2"]["eigenvalue"]) for each in stored]
        expected = np.sqrt(values[0] / values[0][0] * values[1] / values[1][0])
        drawn = np.where(expected > 1e-12, expected, np.nan)
        np.testing.assert_allclose(arm.spectra["layer2"].relative, drawn)
        assert (arm.num_trials, arm.spectra["layer2"].num_trials) == (2, 2)


def test_section_has_table_spectra_and_heat_maps(trained_study: TrainedStudy, section: Section) -> None:
    table = tabulate_statistics(trained_study.results)
    assert set(table) == {"name", *REPRESENTATION_METRICS}
    mean = table.groupby("name", sort=False)["cka_initial"].mean().iloc[0]
    assert f'data-value="{mean}"' in section.body
    drawn = figures(section)
    assert sorted(drawn) == sorted(
        [f"figure-spectra-{n}" for n in range(6)]
        + [f"figure-{kind}-{n}" for kind in ("similarity", "initial") for n in (0, 1)]
    )
    assert (
        re.findall(r'data-view="figure-spectra-\d-view"[^>]*>([^<]*)<', section.body) == (CONVOLUTIONS + COMPARED)[::-1]
    )
    assert len(drawn["figure-spectra-0"]["data"]) == 2
    heat = drawn["figure-initial-0"]["data"][0]
    assert heat["y"] == COMPARED[::-1]
    assert heat["x"] == COMPARED
    for trace in (drawn[f"figure-similarity-{n}"]["data"][0] for n in (0, 1)):
        z = np.array(trace["z"], dtype=np.float64)
        assert np.isfinite(z).all()
        np.testing.assert_allclose(z[::-1], z[::-1].T)


def test_pairs_use_every_network_before_any_twice() -> None:
    from orchestrator.analysis.predictions.similarity import _list_pairs, _prepare

    features = np.random.default_rng(0).normal(size=(6, 3))
    trained = [_prepare(number, frozenset(), features) for number in range(3)]

    def numbers(*arguments: object, **options: bool) -> list[tuple[int, int]]:
        return [(a.replicate, b.replicate) for a, b in _list_pairs(*arguments, **options)]  # type: ignore[arg-type]

    assert numbers(trained, trained, same=True) == [(0, 1), (1, 2), (0, 2)]
    assert numbers(trained, trained, same=False) == [(0, 1), (1, 2), (2, 0), (0, 2), (1, 0), (2, 1)]
    assert numbers(trained[:1], trained[:1], same=True) == []
    assert numbers(trained[:1], trained[:1], same=False) == [(0, 0)]


def test_pairs_share_no_trained_step_if_there_are_others() -> None:
    from orchestrator.analysis.predictions.similarity import _compare, _list_pairs, _prepare

    features = np.random.default_rng(0).normal(size=(6, 3))
    of_two = [_prepare(number, frozenset({f"encoder{number % 2}"}), features) for number in range(4)]
    of_one = [_prepare(number, frozenset({"encoder0"}), features) for number in range(2)]

    def numbers(*arguments: object, **options: bool) -> list[tuple[int, int]]:
        return [(a.replicate, b.replicate) for a, b in _list_pairs(*arguments, **options)]  # type: ignore[arg-type]

    assert numbers(of_two, of_two, same=True) == [(0, 1), (1, 2), (2, 3), (0, 3)]
    assert numbers(of_one, of_two, same=False) == [(0, 1), (1, 3), (0, 3)]
    assert numbers(of_one, of_one, same=True) == [(0, 1)]
    assert not _compare({"two": of_two}, 6, 0).has_shared
    assert _compare({"two": of_two, "one": of_one}, 6, 0).has_shared  # the trainings of the second arm


def test_replicates_that_share_an_encoder_are_one_row_of_the_table(tmp_path: Path) -> None:
    results = load_results(make_fake_ledger(tmp_path, factors={"augmentation": ("none", "strong")}, replicates=3))
    trials = results.trials.assign(**{"representation/effective_rank": results.trials["replicate"] + 1.0})
    for trial in results.plan["trials"]:
        is_shared = trial["arm"]["augmentation"] == "strong"
        trial["needs"] = [f"encoder{trial['replicate'] % 2}"] if is_shared else []
    table = tabulate_statistics(replace(results, trials=trials))
    values = {name: list(own["effective_rank"]) for name, own in table.groupby("name")}
    assert values == {"augmentation=none": [1.0, 2.0, 3.0], "augmentation=strong": [2.0, 2.0]}  # of 1 and 3, of 2
