from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from orchestrator.analysis.results import load_results
from orchestrator.cli.main import app
from orchestrator.ledger.ledger import Ledger
from orchestrator.selection.export import CONTENTS, Exported, export_selection, find_precision, make_slug
from orchestrator.selection.ranking import Selection, SelectionCriteria, select_arm
from tests.support.tiny_configs import tiny_trial
from tests.support.trained_study import TrainedStudy
from trainables.config import TrialConfig
from trainables.errors import CheckpointError, ConfigError, DataError, StorageError, StudyError
from trainables.evaluation.predictions import load_predictions, save_predictions
from trainables.exported.check import TOLERANCES, compare
from trainables.exported.folder import build_exported, load_exported, write_exported
from trainables.exported.form import make_test_images
from trainables.models.confidence import add_confidence
from trainables.models.networks import build_model
from trainables.ops.stain_normalisation import StainNormaliser
from trainables.regularisers import StainNormalisation, find_part
from trainables.storage.checkpoint import save_weights
from trainables.storage.folder import Folder


def export_to(trained: TrainedStudy, out: Path | None, **question: Any) -> tuple[Selection, Exported]:
    results = trained.results
    selection = select_arm(results, SelectionCriteria(**question))
    folder = None if out is None else Folder(out)
    return selection, export_selection(trained.ledger, results, selection, out=folder, cache_dir=trained.cache_dir)


def copy_ledger(trained: TrainedStudy, folder: Path) -> Ledger:
    shutil.copytree(trained.storage, folder)
    return Ledger(str(folder), "small")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_export_reproduces_the_stored_predictions_without_the_study(
    trained_study: TrainedStudy, tmp_path: Path
) -> None:
    selection, exported = export_to(trained_study, tmp_path / "out")
    (check,) = exported.checks
    assert check.num_images == check.num_same_class == 24
    assert check.difference <= 1e-5
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")  # nothing in it points back
    model = load_exported(tmp_path / "elsewhere")
    assert not model.training
    stored = load_predictions(trained_study.ledger.folder("trial", selection.signature), "test").of("identity/0")
    with torch.inference_mode():
        logits = model(torch.from_numpy(exported.images)).numpy()
    np.testing.assert_allclose(logits, stored[: len(logits)], atol=1e-5)
    assert model.config.classes == ("0", "1")
    assert model.config.provenance["signature"] == selection.signature
    assert model.config.provenance["selected_by"] == {
        "column": "val/balanced_accuracy", "rule": "best", "oracle": False,
    }  # fmt: skip


def test_what_is_written_is_whole_and_the_same_every_time(trained_study: TrainedStudy, tmp_path: Path) -> None:
    selection, exported = export_to(trained_study, tmp_path / "out")
    first = contents(tmp_path / "out")
    assert set(first) == set(exported.files) == set(CONTENTS) - {"model.onnx", "reference.safetensors"}
    said = json.loads(first["selection.json"])
    assert said["signature"] == selection.signature
    assert {name: each["bytes"] for name, each in said["files"].items()} == {
        name: len(data) for name, data in first.items() if name != "selection.json"
    }
    record = trained_study.results.records[selection.signature]
    assert record.result is not None
    assert said["files"]["model.safetensors"]["sha256"] == record.result["checkpoint_sha256"]
    (tmp_path / "out" / "model.onnx").write_bytes(b"of an earlier export")
    export_to(trained_study, tmp_path / "out")
    assert contents(tmp_path / "out") == first
    assert str(tmp_path) not in "".join(data.decode("latin-1") for data in first.values())


def test_an_oracle_has_a_folder_of_its_own(trained_study: TrainedStudy, tmp_path: Path) -> None:
    ledger = copy_ledger(trained_study, tmp_path / "copy")
    copied = replace(trained_study, storage=tmp_path / "copy")
    plain, _ = export_to(copied, None)
    oracle, exported = export_to(copied, None, by="robustness/worst_shift_accuracy", oracle=True)
    assert make_slug(plain) in ("none", "strong")
    assert make_slug(oracle).endswith("-oracle")
    assert exported.folder.uri == f"{ledger.root.uri}/selected/{make_slug(oracle)}"
    assert "Chosen by an oracle" in exported.folder.read("README.md").decode()
    assert "Chosen by an oracle" in exported.folder.read("card.html").decode()
    assert exported.folder.read_json("selection.json")["oracle"] is True
    assert exported.model.config.provenance["selected_by"]["oracle"] is True  # type: ignore[index,call-overload]
    assert trained_study.ledger.states() == ledger.states(), "the ledger does not mind the folder"


def test_an_object_store_will_do(trained_study: TrainedStudy) -> None:
    results = trained_study.results
    selection = select_arm(results, SelectionCriteria())
    out = Folder("memory://exports/chosen")
    exported = export_selection(trained_study.ledger, results, selection, out=out, cache_dir=trained_study.cache_dir)
    assert set(out.children()) == set(exported.files)
    assert load_exported(out).config == exported.model.config


def test_names_that_are_no_file_names_get_a_hash(trained_study: TrainedStudy) -> None:
    selection = select_arm(trained_study.results, SelectionCriteria())
    slugs = {
        make_slug(replace(selection, arm=replace(selection.arm, label=label))) for label in ("a/b", "a:b", "../a b")
    }
    assert len(slugs) == 3
    assert all(slug.replace("-", "").replace("_", "").isalnum() for slug in slugs)
    assert make_slug(replace(selection, arm=replace(selection.arm, label="a · b_c"))) == "a-b_c"


def test_predictions_that_are_not_reproduced_stop_the_export(trained_study: TrainedStudy, tmp_path: Path) -> None:
    ledger = copy_ledger(trained_study, tmp_path / "copy")
    results = load_results(ledger)
    selection = select_arm(results, SelectionCriteria())
    trial = ledger.folder("trial", selection.signature)
    stored = load_predictions(trial, "test")
    save_predictions(trial, replace(stored, logits=stored.logits + np.float32(0.01)))
    with pytest.raises(
        CheckpointError, match=r"on 24 test images: the largest difference of a logit is 0\.01, expected"
    ):
        export_selection(ledger, results, selection, out=Folder(tmp_path / "out"), cache_dir=trained_study.cache_dir)
    assert not (tmp_path / "out").exists()


def test_other_images_stop_the_export(trained_study: TrainedStudy, tmp_path: Path) -> None:
    results = trained_study.results
    selection = select_arm(results, SelectionCriteria())
    record = results.records[selection.signature]
    results.records[selection.signature] = replace(record, config=record.config | {"data_fingerprint": "0" * 64})
    with pytest.raises(DataError, match=r"expected 0000.*the files have changed"):
        export_selection(
            trained_study.ledger, results, selection, out=Folder(tmp_path / "out"), cache_dir=trained_study.cache_dir
        )


def test_somebody_elses_files_are_not_overwritten(trained_study: TrainedStudy, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(StudyError, match=r"found README\.md, which `robustsweep select` did not write"):
        export_to(trained_study, tmp_path)
    assert contents(tmp_path) == {"README.md": b"mine"}


def test_a_damaged_or_changed_export_is_refused(trained_study: TrainedStudy, tmp_path: Path) -> None:
    export_to(trained_study, tmp_path)
    before = contents(tmp_path)
    config = json.loads(before["config.json"])
    data = bytearray(before["model.safetensors"])
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="its checksum is"):
        load_exported(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(before["model.safetensors"])
    (tmp_path / "config.json").write_bytes(before["config.json"].replace(b'"original"', b'"small"'))
    with pytest.raises(StorageError, match="was changed by hand"):
        load_exported(tmp_path)
    # What another version of a library would do: the weights fit, and the network is another one.
    del config["seal"]
    for key, changed in (
        ("architecture", {"stem": "small"}),
        ("normalisation", {"mean": [0.4, 0.5, 0.6]}),
        ("normalisation", {"network_size_px": 64}),
    ):
        Folder(tmp_path).write_json("config.json", config | {key: config[key] | changed})
        with pytest.raises(CheckpointError, match="gave it the self-test: its logits differ by"):
            load_exported(tmp_path)
    Folder(tmp_path).write_json("config.json", config | {"surprise": 1})
    with pytest.raises(CheckpointError, match="surprise: Extra inputs are not permitted"):
        load_exported(tmp_path)
    (tmp_path / "config.json").write_bytes(before["config.json"])
    load_exported(tmp_path)


NETWORKS = {
    "grey, upscaled": {"model": {"name": "shufflenet_v2_x0_5", "input_size": 32}},
    "small stem": {"model": {"name": "timm/test_resnet", "stem": "auto", "input_size": None}},
    "dropout": {"regulariser": {"kind": "dropout", "probability": 0.4}},
    "stochastic depth": {
        "model": {"name": "timm/resnet18", "input_size": None}, "regulariser": {"kind": "stochastic_depth"},
    },
    "stains": {
        "data": {"kind": "phantom", "image_size": 32}, "model": {"name": "timm/test_resnet", "input_size": None},
        "regulariser": {"kind": "stain_normalisation"},
    },
}  # fmt: skip


def save_untrained(config: TrialConfig, folder: Folder) -> torch.nn.Module:
    """Write a network with random weights and statistics as a trial does, built as ``trainables.trial`` builds it."""
    torch.manual_seed(1)
    parts = {name: getattr(config.regulariser, "probability", None) for name in ("dropout", "stochastic_depth")}
    network = build_model(
        config.model,
        num_classes=3,
        channels=config.data.channels,
        image_size=config.data.image_size,
        dropout=parts["dropout"] or 0.0 if config.regulariser.kind == "dropout" else 0.0,
        stochastic_depth=parts["stochastic_depth"] if config.regulariser.kind == "stochastic_depth" else None,
    )
    stain = find_part(config.regulariser, StainNormalisation)
    if stain is not None:
        network.stain = StainNormaliser(stain.method)
        network.stain.target.add_(0.1)
    for name, value in network.named_buffers():
        if name.endswith("running_mean"):
            value.add_(0.05)
    add_confidence(network, config.training.confidence, seed=2)
    save_weights(folder, "model.safetensors", network.state_dict(), {"signature": "s"})
    return network.eval()


@pytest.mark.parametrize("sections", NETWORKS.values(), ids=NETWORKS.keys())
def test_every_kind_of_network_comes_back(sections: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_trial(**{"data": {"kind": "digits", "image_size": 16}, **sections})
    trial, out = Folder(tmp_path / "trial"), Folder(tmp_path / "out")
    network = save_untrained(config, trial)
    state = torch.get_rng_state()
    model = build_exported(trial, config, classes=("a", "b", "c"), provenance={})
    write_exported(trial, out, model)
    loaded = load_exported(out)
    assert torch.equal(torch.get_rng_state(), state), "a notebook's random numbers are its own"
    images = torch.randint(0, 256, (5, *make_test_images(loaded.config.images).shape[1:]), dtype=torch.uint8)
    with torch.inference_mode():
        expected = network(network.normalise(images))  # type: ignore[operator]
        assert torch.equal(model(images), expected)
        assert torch.equal(loaded(images), expected)


@pytest.mark.parametrize("kind", ["confidnet", "devries", "deep_gamblers"])
def test_a_learned_confidence_is_exported_with_the_network(kind: str, tmp_path: Path) -> None:
    config = tiny_trial(training={"confidence": {"kind": kind}})
    trial, out = Folder(tmp_path / "trial"), Folder(tmp_path / "out")
    network = save_untrained(config, trial)
    model = build_exported(trial, config, classes=("a", "b", "c"), provenance={})
    write_exported(trial, out, model)
    assert out.sha256("model.safetensors") == trial.sha256("model.safetensors")
    loaded = load_exported(out)
    images = torch.randint(0, 256, (5, 1, 16, 16), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(loaded(images), network(network.normalise(images)))  # type: ignore[operator]
    confidences = loaded.rate_confidence(images)
    assert confidences.shape == (5,)
    assert ((confidences >= 0) & (confidences <= 1)).all()
    assert torch.equal(confidences, model.rate_confidence(images))
    loaded.network.confidence = None
    with pytest.raises(ConfigError, match=r"trained without training\.confidence"):
        loaded.rate_confidence(images)


def test_an_image_file_is_read_as_in_training(trained_study: TrainedStudy, tmp_path: Path) -> None:
    from PIL import Image

    _, exported = export_to(trained_study, tmp_path / "out")
    image = exported.images[0]
    Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "image.png")
    assert np.array_equal(exported.model.decode_image(tmp_path / "image.png")[0].numpy(), image)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match=r"text\.png cannot be read"):
        exported.model.decode_image(tmp_path / "text.png")


def test_the_accepted_difference_follows_how_the_trial_computed(trained_study: TrainedStudy) -> None:
    record = next(iter(trained_study.results.records.values()))
    assert record.result is not None

    def precision(**environment: str) -> str:
        result = record.result or {}
        return find_precision(replace(record, result=result | {"environment": result["environment"] | environment}))

    found = [precision(), precision(device="NVIDIA H100"), precision(device="NVIDIA H100", precision="bfloat16")]
    assert [TOLERANCES[each] for each in found] == [1e-4, 1e-2, 5e-2]


def test_a_difference_is_accepted_relative_to_the_largest_logit() -> None:
    expected = np.array([[20.0, -3.0], [1.0, 2.0]], dtype=np.float32)
    check = compare(expected + np.float32(0.15), expected, what="a against b", tolerance=1e-2)
    assert check.tolerance == pytest.approx(0.2)
    assert check.difference == pytest.approx(0.15, rel=1e-5)
    with pytest.raises(CheckpointError, match="compared a against b on 2 test images"):
        compare(expected + np.float32(0.25), expected, what="a against b", tolerance=1e-2)
    with pytest.raises(CheckpointError):
        compare(expected * np.float32("nan"), expected, what="a against b", tolerance=1e-2)
    with pytest.raises(CheckpointError):
        compare(expected[:, :1], expected, what="a against b", tolerance=1e-2)


def test_onnx_without_its_packages_is_refused_before_anything_is_written(
    trained_study: TrainedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainables.exported.onnx_graph.find_spec", lambda package: None)
    results = trained_study.results
    selection = select_arm(results, SelectionCriteria())
    with pytest.raises(ConfigError, match=r"pip install 'robustsweep\[onnx\]'"):
        export_selection(
            trained_study.ledger, results, selection, out=Folder(tmp_path / "out"), cache_dir=Path("nowhere"), onnx=True
        )
    assert not (tmp_path / "out").exists()


def test_the_onnx_file_answers_as_the_network_does(trained_study: TrainedStudy, tmp_path: Path) -> None:
    import onnxruntime

    results = trained_study.results
    selection = select_arm(results, SelectionCriteria())
    to: dict[str, Any] = {"out": Folder(tmp_path), "cache_dir": trained_study.cache_dir, "onnx": True}
    exported = export_selection(trained_study.ledger, results, selection, **to)
    assert [check.what.split()[0] for check in exported.checks] == ["model.safetensors", "model.onnx"]
    assert exported.checks[1].difference <= 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (declared,) = session.get_inputs()
    assert (declared.name, declared.type) == ("images", "tensor(uint8)")
    for count in (1, 3, 24):
        (logits,) = session.run(None, {"images": exported.images[:count]})
        np.testing.assert_allclose(logits, exported.logits[:count], atol=1e-4)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["0", "1"]


def test_the_command_says_what_it_did(trained_study: TrainedStudy, tmp_path: Path) -> None:
    flags = [str(trained_study.file), "--storage", str(trained_study.storage), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["select", *flags, "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["selection"]["counts"]["complete"] == 4
    assert said["checks"][0]["num_images"] == 24
    told = done.stderr
    assert "4 of 4 trials complete" in told
    assert "arms by val/balanced_accuracy (in-distribution validation), mean ± sd over replicates:" in told
    assert told.count("(n = 2)") == 3, "both arms, and the reason"
    assert f"written: {tmp_path}/out/model.safetensors" in told
    assert "rule best: " in told
    assert "replicate" in told
