"""Splits that all replicates share or that each draws for itself, and sites that are left out one at a time."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from orchestrator.driver.announce import announce
from orchestrator.driver.prepare import Prepared, prepare
from orchestrator.planning.metric_checks import find_undefined
from orchestrator.planning.trial_checks import find_distinct
from orchestrator.study.study_file import parse_study
from trainables.config import TrialConfig
from trainables.data.load import load_dataset
from trainables.data.splits import derive_split_seed
from trainables.data_config import PhantomData
from trainables.errors import ConfigError, StudyError

HEAD = "study: s\ntraining: {batch_size: 8}\nfactors: {augmentation: [none, strong]}\nreplicates: 3\n"


def prepare_with(tmp_path: Path, data: str, *overrides: str) -> Prepared:
    settings = [f"execution.cache_dir={tmp_path / 'cache'}", *overrides]
    study = parse_study(f"{HEAD}data: {data}\n", source="s.yaml", overrides=settings)
    return prepare(study, storage=str(tmp_path / "results"))


def ids_in_test(prepared: Prepared) -> dict[tuple[str, int], frozenset[str]]:
    return {
        (trial.name, trial.replicate or 0): frozenset(prepared.inputs.dataset(trial.config.data).splits["test"].ids)  # type: ignore[union-attr]
        for trial in prepared.plan.trials
    }


def test_every_replicate_has_test_images_of_its_own_and_the_arms_of_a_replicate_the_same(tmp_path: Path) -> None:
    fixed = ids_in_test(prepare_with(tmp_path, "{kind: digits, image_size: 8}"))
    assert len(set(fixed.values())) == 1
    prepared = prepare_with(tmp_path, "{kind: digits, image_size: 8, split: per_replicate}")
    own = ids_in_test(prepared)
    tests = [own["augmentation=none", replicate] for replicate in range(3)]
    assert tests == [own["augmentation=strong", replicate] for replicate in range(3)]
    assert len(set(tests)) == 3
    assert tests[0] == fixed["augmentation=none", 0]
    shared = len(tests[0] & tests[1]) / len(tests[0])
    assert 0.1 < shared < 0.3  # two independent draws of a fifth share a fifth
    assert len({trial.data_fingerprint for trial in prepared.plan.trials}) == 3
    configs = [trial.config for trial in prepared.plan.trials if isinstance(trial.config, TrialConfig)]
    assert len(find_distinct(configs)) == 1  # the network is tried once
    console = Console(file=StringIO(), width=200)
    announce(prepared, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert said.count("data     digits\n") == 1
    assert "and 2 more with other splits or settings" in said


def write_manifest(folder: Path, splits: tuple[str, ...]) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    lines = ["file_name,label,split"]
    for row in range(48):
        Image.fromarray(generator.integers(0, 255, (8, 8), dtype=np.uint8)).save(folder / f"{row}.png")
        lines.append(f"{row}.png,{row % 2},{splits[row // 2 % len(splits)]}")
    (folder / "m.csv").write_text("\n".join(lines))
    return folder / "m.csv"


@pytest.mark.parametrize("splits", [("train", "train", "val", "test"), ("train", "train", "test")])
def test_a_test_set_that_the_data_give_is_fixed_by_nature(splits: tuple[str, ...], tmp_path: Path) -> None:
    """Also where val is cut from train: the test set is what a verdict is about."""
    data = f"{{kind: csv, image_size: 8, path: {write_manifest(tmp_path / 'd', splits)}}}"
    assert len(set(ids_in_test(prepare_with(tmp_path, data)).values())) == 1
    with pytest.raises(StudyError, match=r"data\.split: found per_replicate, and the data give the test set"):
        prepare_with(tmp_path, data, "data.split=per_replicate")


def test_what_plans_the_split_changes_no_stored_byte(tmp_path: Path) -> None:
    small = PhantomData(num_images=24, num_external_images=4, image_size=8)
    own = small.model_copy(update={"split": "per_replicate"})
    first, second = (load_dataset(config, cache_dir=tmp_path) for config in (small, own))
    assert first.fingerprint == second.fingerprint
    other = own.model_copy(update={"split_seed": derive_split_seed(0, 1)})
    third = load_dataset(other, cache_dir=tmp_path)
    assert set(first.splits["test"].ids) != set(third.splits["test"].ids)
    assert list(first.external["external-0"].ids) == list(third.external["external-0"].ids)


def test_seeds_of_splits_are_distinct_seeds() -> None:
    seeds = [derive_split_seed(seed, replicate) for seed in (0, 1) for replicate in range(100)]
    assert len(set(seeds)) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_split_seed(5, 0) == 5


def write_sites(folder: Path, sites: tuple[str, ...] = ("paris", "lyon", "lille")) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    lines = ["file_name,label,site"]
    for row in range(72):
        Image.fromarray(generator.integers(0, 255, (8, 8), dtype=np.uint8)).save(folder / f"{row}.png")
        lines.append(f"{row}.png,{row % 2},{sites[row // 2 % len(sites)]}")
    (folder / "m.csv").write_text("\n".join(lines))
    return folder / "m.csv"


LEFT_OUT = "factors={data.leave_out: [paris, lyon, null], augmentation: [none, strong]}"


def test_each_site_is_left_out_in_trials_of_its_own(tmp_path: Path) -> None:
    data = f"{{kind: csv, image_size: 8, path: {write_sites(tmp_path / 'd')}}}"
    prepared = prepare_with(tmp_path, data, LEFT_OUT)
    assert len(prepared.plan.trials) == 3 * 2 * 3
    for trial in prepared.plan.trials:
        assert trial.levels is not None
        site = trial.levels["data.leave_out"]
        dataset = prepared.inputs.dataset(trial.config.data)  # type: ignore[union-attr]
        assert list(dataset.external) == ([] if site == "none" else [site])
        assert all(site not in images.sites for images in dataset.splits.values())
    console = Console(file=StringIO(), width=200)
    announce(prepared, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "sites    2 of 3 left out, each in trials of its own; never left out: lille\n" in said


def test_a_site_that_does_not_exist_is_refused_with_those_that_do(tmp_path: Path) -> None:
    data = f"{{kind: csv, image_size: 8, path: {write_sites(tmp_path / 'd')}}}"
    with pytest.raises(ConfigError, match=r"data\.leave_out names 'parys'.*nearest: 'paris'.*lille, lyon, paris"):
        prepare_with(tmp_path, data, LEFT_OUT.replace("paris", "parys"))
    with pytest.raises(StudyError, match=r"found 'lyon' as leave_out and in external_sites"):
        prepare_with(tmp_path, data, LEFT_OUT, "data.external_sites=[lyon]")


def test_a_claim_over_sites_is_about_those_that_are_left_out(tmp_path: Path) -> None:
    """Six sites, each in arms of its own, and arms that leave out none; none of the arms has all six."""
    sites = ("paris", "lyon", "lille", "nice", "brest", "metz")
    data = f"{{kind: csv, image_size: 8, path: {write_sites(tmp_path / 'd', sites)}}}"
    over = f"factors={{data.leave_out: [{', '.join(sites)}, null], augmentation: [none, strong]}}"
    claim = (
        "{name: h, claim: c, metric: external/mean_accuracy, direction: higher, smallest_effect: 0, over: sites, %s}"
    )
    strong = claim % "treatment: {augmentation: strong}, control: {augmentation: none}"
    prepared = prepare_with(tmp_path, data, over, "replicates=6", f"hypotheses=[{strong}]")
    console = Console(file=StringIO(), width=200)
    announce(prepared, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "h: 6 external sites × 6 replicates, smallest attainable p 0.0312" in said
    apart = claim % "treatment: {data.leave_out: paris}, control: {data.leave_out: lyon}"
    with pytest.raises(
        StudyError, match=r"hypotheses\[0\].metric: .* have an external set in common; compare arms that"
    ):
        prepare_with(tmp_path, data, over, "replicates=6", f"hypotheses=[{apart}]")


def test_a_mean_over_sites_needs_a_site_and_their_spread_two(tmp_path: Path) -> None:
    data = "{kind: phantom, num_images: 24, num_external_sites: 1, num_external_images: 4, image_size: 8}"
    inputs = prepare_with(tmp_path, data).inputs
    (one,) = inputs.datasets
    config = TrialConfig()
    assert find_undefined("external/mean_auroc", config, one) is None
    assert find_undefined("external/sd_accuracy", config, one) == (
        "external/sd_accuracy needs 2, and the data have external-0"
    )
    two = replace(one, external=one.external | {"north": one.external["external-0"]})
    assert find_undefined("external/sd_accuracy", config, two) is None
    assert "ordered classes" in str(find_undefined("external/worst_quadratic_kappa", config, two))
    none = replace(one, external={})
    assert find_undefined("external/mean_auroc", config, none) == (
        "external/mean_auroc needs 1, and the data have no external set"
    )
