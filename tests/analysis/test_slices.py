"""One map of all sets, and clusters whose errors are judged where they were not formed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from orchestrator.analysis.slices.clusters import Clusters, estimate_correlation, find_clusters, find_overrepresented
from orchestrator.analysis.slices.embedding import embed_tsne, fit_axes
from orchestrator.analysis.slices.risks import find_risk_clusters, judge_groups
from orchestrator.statistics.intervals import wilson_interval


@dataclass(frozen=True)
class Planted:
    """Images of two classes, two per patient, with or without an artefact on 5 % of them that triples the error."""

    features: np.ndarray
    is_wrong: np.ndarray
    patients: np.ndarray
    has_artefact: np.ndarray

    def cluster(self) -> Clusters:
        axes = fit_axes(self.features, num_components=10)
        return find_clusters(axes.place(self.features), self.is_wrong, self.patients)


def plant(seed: int, *, triples: bool, num_patients: int = 1_500, correlated: bool = False) -> Planted:
    random = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), 2)
    n = len(patients)
    label = random.integers(0, 2, n)
    has_artefact = random.random(n) < 0.05
    direction = random.normal(size=(3, 32))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    own = random.normal(size=(num_patients, 32))[patients] * 0.5
    features = (
        random.normal(size=(n, 32)) * 0.85 + own + 8 * direction[label] + 8 * has_artefact[:, None] * direction[2]
    )
    error = np.where(has_artefact & triples, 0.3, 0.1)
    chance = random.random(num_patients)[patients] if correlated else random.random(n)
    return Planted(features.astype(np.float16), chance < error, patients, has_artefact)


def is_found(planted: Planted) -> bool:
    """Whether clusters that are mostly artefacts, among the first three, hold half of all artefacts."""
    codes = planted.cluster().codes
    first = [number for number in range(min(3, codes.max() + 1)) if planted.has_artefact[codes == number].mean() > 0.5]
    return bool(np.isin(codes[planted.has_artefact], first).mean() >= 0.5)


def test_a_planted_slice_is_among_the_first_and_called_elevated() -> None:
    planted = plant(0, triples=True)
    assert is_found(planted)
    found = planted.cluster()
    assert found.clusters[0].is_elevated
    assert found.clusters[0].error_rate > 2 * found.error_rate


def test_the_error_rate_of_a_cluster_is_that_of_the_judging_half() -> None:
    planted = plant(1, triples=True)
    found = planted.cluster()
    for each in found.clusters:
        judged = found.judges & (found.codes == each.number)
        assert each.num_judged == judged.sum()
        assert each.error_rate == planted.is_wrong[judged].mean()
        assert each.low <= each.error_rate <= each.high
    halves = {patient: set(found.judges[planted.patients == patient]) for patient in range(50)}
    assert all(len(half) == 1 for half in halves.values())
    assert [each.low for each in found.clusters] == sorted((each.low for each in found.clusters), reverse=True)


@pytest.mark.long
def test_a_planted_slice_is_found_in_eight_of_ten_studies() -> None:
    assert sum(is_found(plant(seed, triples=True)) for seed in range(10)) >= 8


@pytest.mark.long
@pytest.mark.parametrize("correlated", [False, True])
def test_without_a_slice_no_cluster_is_called_elevated(correlated: bool) -> None:
    """In 95 % of studies at least, also where both images of a patient are wrong together: 3 of 200 SE 1.5 %."""
    studies = 100
    called = sum(
        any(each.is_elevated for each in plant(seed, triples=False, correlated=correlated).cluster().clusters)
        for seed in range(studies)
    )
    assert called <= 0.05 * studies


def test_images_of_a_patient_that_fail_together_are_one() -> None:
    groups = np.repeat(np.arange(200), 2)
    together = np.repeat(np.random.default_rng(0).random(200) < 0.2, 2)
    assert estimate_correlation(together, groups) == pytest.approx(1.0)
    apart = np.random.default_rng(0).random(400) < 0.2
    assert estimate_correlation(apart, groups) == pytest.approx(0.0, abs=0.1)
    assert estimate_correlation(apart, np.arange(400)) == 0.0


def test_levels_that_stand_out_are_named() -> None:
    inside = np.arange(100) < 20
    site = np.where(np.arange(100) < 18, 0, 1)
    sex = np.arange(100) % 2
    (found,) = find_overrepresented(inside, [("site", ["a", "b"], site), ("sex", ["f", "m"], sex)])
    assert (found.column, found.level, found.inside, found.outside) == ("site", "a", 0.9, 0.0)


def test_the_interval_of_a_share_is_wilsons() -> None:
    """Known answer: Newcombe 1998, table I, 81 of 263."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_axes_are_those_of_the_reference_alone_and_place_all_else() -> None:
    random = np.random.default_rng(0)
    reference = random.normal(size=(500, 6)) * [5, 3, 1, 1, 1, 1]
    axes = fit_axes(reference.astype(np.float16), num_components=2)
    _, _, expected = np.linalg.svd(reference - reference.mean(axis=0))
    assert np.abs(np.diag(expected[:2] @ axes.components)) == pytest.approx([1, 1], abs=1e-3)
    assert axes.explained.sum() == pytest.approx(34 / 38, abs=0.05)
    shifted = axes.place(reference + axes.components[:, 0])
    assert shifted - axes.place(reference) == pytest.approx(np.tile([1.0, 0.0], (500, 1)), abs=1e-3)


def test_a_feature_that_never_varies_makes_no_axis() -> None:
    axes = fit_axes(np.ones((10, 3), np.float16), num_components=4)
    assert axes.place(np.ones((2, 3), np.float16)).tolist() == [[0.0] * 4] * 2


def test_tsne_places_the_same_images_at_the_same_places_and_repeats_itself() -> None:
    """What lies in two sets must lie at one place of the map: the fault of a map per set."""
    pytest.importorskip("openTSNE")
    random = np.random.default_rng(0)
    reference = np.concatenate([random.normal(size=(100, 5)), random.normal(size=(100, 5)) + 8]).astype(np.float32)
    shares: list[float] = []
    fitted, placed = embed_tsne(reference, reference[::4], on_progress=shares.append)
    size = np.linalg.norm(fitted - fitted.mean(axis=0), axis=1).mean()
    assert np.linalg.norm(placed - fitted[::4], axis=1).mean() < 0.25 * size
    again = embed_tsne(reference, reference[::4])
    assert np.array_equal(again[0], fitted)
    assert np.array_equal(again[1], placed)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def plant_risks(seed: int, *, worse: bool, num_patients: int = 150) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, risks and patients of two clusters, two alike cases a patient; the second may be .15 worse."""
    random = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), 2)
    second = np.repeat(random.random(num_patients) < 0.3, 2)
    features = random.normal(size=(len(patients), 6)) * 0.6 + 8 * second[:, None]
    own = random.gamma(2.0, 0.08, num_patients)[patients]
    risks = np.clip(own + random.normal(size=len(patients)) * 0.02 + 0.15 * (second & worse), 0, 1)
    return features.astype(np.float32), risks, patients


def test_a_worse_cluster_of_cases_is_called_by_the_patients_it_was_not_formed_on() -> None:
    features, risks, patients = plant_risks(0, worse=True)
    found = find_risk_clusters(features, risks, patients)
    first = found.clusters[0]
    assert first.is_elevated
    assert not any(each.is_elevated for each in found.clusters[1:])
    judged = found.judges & (found.codes == first.number)
    means = [risks[judged & (patients == patient)].mean() for patient in np.unique(patients[judged])]
    assert (first.risk, first.num_patients) == (pytest.approx(np.mean(means)), len(means))
    half = stats.t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / len(means) ** 0.5
    assert (first.low, first.high) == pytest.approx((np.mean(means) - half, np.mean(means) + half))
    everyone = found.judges
    expected = np.mean([risks[everyone & (patients == each)].mean() for each in np.unique(patients[everyone])])
    assert found.risk == pytest.approx(expected)


def test_the_p_of_a_group_is_that_of_all_permutations() -> None:
    risks = np.array([0.9, 0.8, 0.1, 0.2, 0.3, 0.15])
    codes, patients = np.array([0, 0, 1, 1, 1, 1]), np.arange(6)
    first, second = judge_groups(codes, risks, patients)
    sums = [sum(pair) for pair in itertools.combinations(risks, 2)]
    exact = np.mean([each >= 1.7 - 1e-9 for each in sums])  # 1 of 15
    assert first.p == pytest.approx(2 * exact, abs=0.02)  # Holm: of two groups
    assert second.p == 1.0
    assert (first.low, first.high) == (None, None)  # two patients


@pytest.mark.long
def test_without_a_worse_cluster_of_cases_none_is_called() -> None:
    """In 95 % of studies at least, with two alike cases a patient and skewed risks; of 200, three standard errors."""
    called = sum(
        any(each.is_elevated for each in find_risk_clusters(*plant_risks(seed, worse=False)).clusters)
        for seed in range(200)
    )
    assert called <= 0.05 * 200 + 3 * (200 * 0.05 * 0.95) ** 0.5
