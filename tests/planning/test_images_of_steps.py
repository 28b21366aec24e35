"""Images of a step: unlabelled folders, several sources, and test images that must not be among them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.driver.prepare import Prepared, prepare
from orchestrator.planning.works import find_remarks
from orchestrator.study.study_file import parse_study
from tests.support.tiny_configs import random_dataset
from trainables.config import StageConfig
from trainables.data.identity.copies import digest_images
from trainables.data.identity.overlap import Overlap, find_overlap
from trainables.data_config import DigitsData
from trainables.errors import ConfigError, StudyError
from trainables.pretraining.sources import join_training, load_sources
from trainables.pretraining_config import ContrastivePretraining, SupervisedPretraining

HEAD = "study: s\ndata: {kind: digits, image_size: 8}\nmodel: {name: shufflenet_v2_x0_5, input_size: 16}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of grey images without classes: 6 of noise in two folders, and one file that is no image."""
    path = tmp_path_factory.mktemp("unlabelled")
    generator = np.random.default_rng(0)
    for number in range(6):
        (path / f"scanner{number % 2}").mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (12, 10), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"scanner{number % 2}" / f"p{number // 2}_{number}.png")
    return path


def plan(steps: str, tmp_path: Path, cache_dir: Path, *overrides: str) -> Prepared:
    text = f"{HEAD}pretraining: {steps}"
    study = parse_study(text, source="s.yaml", overrides=[f"execution.cache_dir={cache_dir}", *overrides])
    return prepare(study, storage=str(tmp_path / "results"))


def contrastive(data: str, more: str = "") -> str:
    return f"{{kind: contrastive, epochs: 1, batch_size: 4, data: {data}{more}}}"


def test_an_unlabelled_folder_is_pretrained_on(folder: Path, tmp_path: Path, cache_dir: Path) -> None:
    source = f"{{kind: unlabelled_folder, path: {folder}, group_pattern: 'p[0-9]'}}"
    prepared = plan(contrastive(source), tmp_path, cache_dir)
    (stage,) = prepared.plan.stages
    assert stage.name == "simclr on unlabelled_folder from scratch"
    assert isinstance(stage.config, StageConfig)
    (data,) = load_sources(stage.config.pretraining.sources, cache_dir=cache_dir)
    train = data.splits["train"]
    assert train.images.shape == (6, 1, 8, 8)  # brought to the study's side and channels
    assert list(train.ids) == sorted(f"scanner{n % 2}/p{n // 2}_{n}.png" for n in range(6))
    assert sorted(train.groups) == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert stage.config.pretraining.fingerprints == (data.fingerprint,)
    moved = tmp_path / "moved"
    folder.rename(moved)
    try:
        again = plan(contrastive(source.replace(str(folder), str(moved))), tmp_path, cache_dir).plan
        assert [work.signature for work in again.works] == [work.signature for work in prepared.plan.works]
        (moved / "scanner0" / "p0_0.png").write_bytes((moved / "scanner1" / "p0_1.png").read_bytes())
        changed = plan(contrastive(source.replace(str(folder), str(moved))), tmp_path, cache_dir).plan
        assert not {work.signature for work in changed.works} & {work.signature for work in prepared.plan.works}
    finally:
        moved.rename(folder)


def test_several_sources_are_one_set(folder: Path, cache_dir: Path, tmp_path: Path) -> None:
    sources = f"[{{kind: unlabelled_folder, path: {folder}}}, {{kind: phantom, num_images: 40, num_external_sites: 0}}]"
    (stage,) = plan(contrastive(sources), tmp_path, cache_dir).plan.stages
    assert stage.name == "simclr on unlabelled_folder + phantom from scratch"
    assert isinstance(stage.config, StageConfig)
    datasets = load_sources(stage.config.pretraining.sources, cache_dir=cache_dir)
    joined = join_training(datasets)
    sizes = [len(data.splits["train"]) for data in datasets]
    assert len(joined) == sum(sizes)
    assert np.array_equal(joined.images[sizes[0] :], datasets[1].splits["train"].images)
    assert len(set(joined.ids)) == len(joined)
    assert {name[:2] for name in joined.ids} == {"0/", "1/"}
    assert set(joined.labels) == {-1}
    with pytest.raises(StudyError, match=r"batch_size: found 4000, and simclr on unlabelled_folder"):
        plan(contrastive(sources).replace("batch_size: 4", "batch_size: 4000"), tmp_path, cache_dir)


def test_a_source_that_has_no_such_images_is_refused(tmp_path: Path, cache_dir: Path) -> None:
    with pytest.raises(ConfigError, match="brought coloured_digits to the study's channels 1 and failed"):
        plan(contrastive("{kind: coloured_digits}"), tmp_path, cache_dir)


def test_test_images_enter_no_pretraining_unless_it_is_transductive(tmp_path: Path, cache_dir: Path) -> None:
    other_split = "{kind: digits, split_seed: 1}"
    with pytest.raises(StudyError, match=r"would see \d+ test or external image\(s\) of the study and 0 other"):
        plan(contrastive(other_split), tmp_path, cache_dir)
    plan(contrastive("{kind: digits}"), tmp_path, cache_dir)  # the study's own training split
    prepared = plan(contrastive(other_split, ", transductive: true"), tmp_path, cache_dir)
    assert prepared.plan.remarks == {"base": ["transductive: a pretraining may have seen these images"]}
    honest = plan(contrastive("{kind: digits}"), tmp_path, cache_dir)
    said = plan(contrastive("{kind: digits}", ", transductive: true"), tmp_path, cache_dir)
    assert "remarks" not in honest.plan.as_json()
    assert said.plan.trials[0].signature != honest.plan.trials[0].signature
    proposed = replace(said.plan.trials[0], name="training.learning_rate=0.01")  # an arm that a search makes
    remarks = replace(said.plan, trials=(proposed,)).as_json()["remarks"]
    assert remarks == {"training.learning_rate=0.01": ["transductive: a pretraining may have seen these images"]}


def test_that_a_supervised_step_may_have_seen_labels_is_said() -> None:
    step = SupervisedPretraining(data=DigitsData(), transductive=True)
    seen = "transductive: a pretraining may have seen these images and their labels"
    assert find_remarks(step) == [seen]
    assert find_remarks(ContrastivePretraining(init=step)) == [seen]
    assert find_remarks(SupervisedPretraining(data=DigitsData())) == []


def test_patients_of_test_images_are_found_where_both_name_them_alike() -> None:
    target, source = random_dataset(), random_dataset(size=16)
    test = target.splits["test"]
    used = replace(source.splits["train"], ids=np.array([f"x{n}" for n in range(48)]))

    def overlap(groups: list[str], images: np.ndarray, *, same_place: bool) -> Overlap:
        train = replace(used, groups=np.array(groups), images=images)
        data = replace(source, splits={"train": train})
        return find_overlap(data, target, same_place=same_place, digest=lambda each: digest_images(each.images))

    fresh = 255 - used.images
    others = [f"g{number // 2}" for number in range(48)]
    assert not overlap(others, fresh, same_place=True)
    named = [str(test.groups[0]), *others[1:]]
    assert not overlap(named, fresh, same_place=False)  # another source may number its patients alike
    assert overlap(named, fresh, same_place=True) == Overlap((), ("x0",))
    copied = fresh.copy()
    copied[0] = test.images[0]
    assert overlap(others, copied, same_place=False) == Overlap((("x0", f"test {test.ids[0]}"),), ())
    both = [str(test.groups[0]), str(test.groups[1]), *others[2:]]  # an image in common has the same patient in both
    assert overlap(both, copied, same_place=False) == Overlap((("x0", f"test {test.ids[0]}"),), ("x1",))
    outside = target.external["elsewhere"]
    copied[5] = outside.images[3]
    assert ("x5", f"elsewhere {outside.ids[3]}") in overlap(others, copied, same_place=False).images


def test_weights_whose_images_are_unknown_are_said(tmp_path: Path, cache_dir: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from torchvision.models import shufflenet_v2_x0_5

    torch.manual_seed(0)
    save_file(shufflenet_v2_x0_5().state_dict(), tmp_path / "ours.safetensors")
    steps = f"[{{kind: weights, file: {tmp_path / 'ours.safetensors'}, licence: ours}}, contrastive]"
    prepared = plan(steps, tmp_path, cache_dir)
    remark = "whether the weights ours.safetensors were trained on these images is unknown"
    assert prepared.plan.remarks == {"base": [remark]}
    assert prepared.plan.stages[0].name == "simclr on digits from weights ours.safetensors"
    first = prepared.plan.trials[0].config.pretraining.init  # type: ignore[union-attr]
    assert len(first.file_sha256) == 64
    known = plan(steps.replace("licence: ours", "pretrained_on: other digits"), tmp_path, cache_dir)
    assert not known.plan.remarks
    assert known.plan.trials[0].signature == prepared.plan.trials[0].signature
    with pytest.raises(ConfigError, match=r"found the weights 'resnet18.IMAGENET1K_V1' for the network shufflenet"):
        plan("{kind: weights, name: resnet18.IMAGENET1K_V1}", tmp_path, cache_dir)
