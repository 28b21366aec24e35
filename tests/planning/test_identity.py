from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.planning.identity import SIGNATURE_LENGTH, compute_identity, compute_signature
from tests.support.plans import StatedFacts, names_of, plan_of
from trainables.augmentation_config import StrongAugmentation
from trainables.config import SpectralDecoupling, StageConfig, TrialConfig
from trainables.data.load import load_dataset
from trainables.data_config import CsvData, MedmnistData, PhantomData
from trainables.frozen import canonical_json
from trainables.pretraining_config import ContrastivePretraining, ImageNetPretraining
from trainables.task_config import SegmentationTask

FINGERPRINT = "0123456789abcdef"
STUDY = "factors: {pretraining: {a: scratch, b: {kind: contrastive, epochs: 3}}, augmentation: [none, strong]}\n"


@pytest.mark.parametrize(
    ("config", "signature"),
    [
        (TrialConfig(), "0fe30ba5639ba340"),
        (
            TrialConfig(
                data=PhantomData(num_sites=2, lesion_radius_px=(1.0, 2.5)),
                pretraining=ContrastivePretraining(epochs=7, init=ImageNetPretraining(file_sha256="ab" * 32)),
                augmentation=StrongAugmentation(strength=0.5),
                regulariser=SpectralDecoupling(weight=(0.1, 0.2), gamma=1.0),
                seed=3,
                replicate=2,
            ),
            "27148f4ae1b03646",
        ),
        (
            StageConfig(data=MedmnistData(), model=TrialConfig().model, pretraining=ContrastivePretraining()),
            "cbb57926a84f742a",
        ),
    ],
)
def test_signatures_stay_what_they_were(config: TrialConfig | StageConfig, signature: str) -> None:
    """Other numbers here mean that every study in the world starts anew: only with a new SCHEMA_VERSION."""
    assert compute_signature(config, FINGERPRINT) == signature


def test_a_signature_is_short_hexadecimal_and_repeatable() -> None:
    first, second = (compute_signature(TrialConfig(), FINGERPRINT) for _ in range(2))
    assert first == second
    assert len(first) == SIGNATURE_LENGTH
    int(first, 16)


def test_all_defaults_are_spelled_out() -> None:
    identity = compute_identity(TrialConfig())
    assert set(identity) == set(TrialConfig.model_fields) - {"matching", "earlier_encoders", "task"}
    assert compute_identity(TrialConfig(task=SegmentationTask()))["task"]["kind"] == "segmentation"
    assert identity["training"]["learning_rate"] == 1e-3
    assert identity["evaluation"]["severities"] == [1, 2, 3, 4, 5]
    assert compute_signature(TrialConfig.model_validate({"training": {"epochs": 20}}), "x") == compute_signature(
        TrialConfig(), "x"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"learning_rate": 2e-3}},
        {"training": {"patience": 5}},
        {"evaluation": {"shift_seed": 1}},
        {"data": {"kind": "digits", "split_seed": 1}},
        {"augmentation": {"kind": "strong", "strength": 0.0}},
        {"seed": 1},
        {"replicate": 1},
    ],
)
def test_another_value_of_any_scientific_field_is_another_signature(change: dict[str, object]) -> None:
    assert compute_signature(TrialConfig.model_validate(change), "x") != compute_signature(TrialConfig(), "x")


def test_a_confidence_and_mc_dropout_change_signatures_only_where_they_are_set() -> None:
    assert "confidence" not in compute_identity(TrialConfig())["training"]
    assert "mc_dropout" not in compute_identity(TrialConfig())["evaluation"]
    kinds = ("none", "deep_gamblers", "devries", "confidnet")
    changes = [{"training": {"confidence": {"kind": kind}}} for kind in kinds]
    changes += [{"evaluation": {"mc_dropout": draws}} for draws in (0, 10)]
    found = [compute_signature(TrialConfig.model_validate(change), "x") for change in changes]
    assert len(set(found)) == 5
    assert found[0] == found[4] == compute_signature(TrialConfig(), "x")


def test_fine_tuning_changes_a_signature_only_where_it_is_set_and_label_maps_never_do() -> None:
    """A label map is computed from stored predictions: adding one must not train a finished study again."""
    assert "fine_tune" not in compute_identity(TrialConfig())["training"]
    changes: list[dict[str, object]] = [
        {},
        {"training": {"fine_tune": {"layer_decay": 1.0}}},
        {"evaluation": {"label_maps": {"high": {str(digit): str(digit > 4) for digit in range(10)}}}},
        {"evaluation": {"per_class": True}},
        {"training": {"fine_tune": {"layer_decay": 0.75}}},
        {"training": {"fine_tune": {"last_stages": 1}}},
        {"training": {"fine_tune": {"frozen_stem": True}}},
        {"training": {"fine_tune": {"batch_norm": "frozen"}}},
    ]
    found = [compute_signature(TrialConfig.model_validate(change), "x") for change in changes]
    assert len(set(found[:4])) == 1
    assert len(set(found[3:])) == 5


def test_other_data_are_another_signature() -> None:
    assert compute_signature(TrialConfig(), "x") != compute_signature(TrialConfig(), "y")


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ({"data": {"kind": "medmnist"}}, {"data": {"kind": "medmnist", "path": "/mnt/b.npz"}}),
        ({"data": {"kind": "csv", "path": "/a"}}, {"data": {"kind": "csv", "path": "/b", "root": "/c"}}),
        ({"data": {"kind": "csv", "path": "/a"}}, {"data": {"kind": "csv", "path": "/a", "max_megapixels": 7}}),
        (
            {"data": {"kind": "torchvision", "name": "CIFAR10", "path": "/a"}},
            {"data": {"kind": "torchvision", "name": "CIFAR10", "path": "/b", "download": True}},
        ),
        (
            {"pretraining": {"kind": "imagenet", "file": "/a.pth", "file_sha256": "ab"}},
            {"pretraining": {"kind": "imagenet", "file": "/b.pth", "file_sha256": "ab", "on_unavailable": "skip"}},
        ),
    ],
)
def test_where_things_lie_is_not_identity(here: dict[str, object], there: dict[str, object]) -> None:
    one, other = TrialConfig.model_validate(here), TrialConfig.model_validate(there)
    assert one != other
    assert compute_signature(one, "x") == compute_signature(other, "x")


def test_no_location_enters_an_identity() -> None:
    config = TrialConfig.model_validate({"data": {"kind": "csv", "path": "/somewhere/particular.csv"}})
    assert "particular" not in canonical_json(compute_identity(config))


def test_workers_devices_and_storage_are_not_identity() -> None:
    overrides = [
        "execution={cpus_per_trial: 4, gpus_per_trial: 0.5, max_concurrent_trials: 3, device: cuda}",
        "execution.storage=s3://bucket/x",
        "execution.cache_dir=/scratch",
        "execution.shift_cache_gib=0",
        "execution.evaluation_batch_size=7",
    ]
    assert names_of(plan_of(STUDY)) == names_of(plan_of(STUDY, *overrides))


@pytest.mark.parametrize(
    "grown",
    [
        STUDY.replace("[none, strong]", "[none, strong, trivialaugment]"),
        STUDY.replace("[none, strong]", "[trivialaugment, strong, none]"),
        STUDY.replace("{a: scratch", "{c: {kind: contrastive, epochs: 9}, a: scratch"),
        STUDY + "replicates: 3\n",
        STUDY.replace("a: scratch", "renamed: scratch"),
    ],
    ids=["level", "order", "stage", "replicate", "label"],
)
def test_growing_a_study_changes_no_other_signature(grown: str) -> None:
    before, after = plan_of(STUDY), plan_of(grown)
    assert set(names_of(before)) <= set(names_of(after))
    assert {stage.signature for stage in before.stages} <= {stage.signature for stage in after.stages}


def test_the_fingerprint_of_the_data_is_in_every_signature() -> None:
    before, after = plan_of(STUDY), plan_of(STUDY, facts=StatedFacts(data="e" * 16))
    assert not set(names_of(before)) & set(names_of(after))
    assert not {stage.signature for stage in before.stages} & {stage.signature for stage in after.stages}


def make_manifest(folder: Path, *, brightness: int = 0) -> CsvData:
    folder.mkdir(parents=True)
    lines = ["file_name,label,split"]
    for index in range(12):
        Image.new("L", (8, 8), 20 * index + brightness * (index == 11)).save(folder / f"{index}.png")
        lines.append(f"{index}.png,{'ab'[index % 2]},{('train', 'val', 'test')[index // 4]}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return CsvData(path=folder / "manifest.csv", image_size=8)


def test_moving_the_data_changes_nothing_and_changing_a_pixel_does(tmp_path: Path) -> None:
    signatures = []
    for name, brightness in (("here", 0), ("moved/there", 0), ("changed", 1)):
        config = TrialConfig(data=make_manifest(tmp_path / name, brightness=brightness))
        fingerprint = load_dataset(config.data, cache_dir=tmp_path / "cache").fingerprint
        signatures.append(compute_signature(config, fingerprint))
    assert signatures[0] == signatures[1] != signatures[2]


def test_canonical_json_is_one_text_per_value() -> None:
    assert canonical_json({"b": 1.0, "a": [True, None, "é"]}) == '{"a":[true,null,"\\u00e9"],"b":1.0}'
    assert json.loads(canonical_json({"x": 0.1})) == {"x": 0.1}
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json(float("nan"))
