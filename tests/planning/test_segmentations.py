"""Plans of segmentations: the network of the steps before them, their order, and settings that mean nothing there."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from orchestrator.driver.prepare import Prepared, prepare, resolve_execution
from orchestrator.driver.terminal.announce import announce
from orchestrator.study.study_file import parse_study
from trainables.config import StageConfig, TrialConfig
from trainables.data.load import load_dataset
from trainables.errors import StudyError
from trainables.regularisers import NoRegulariser
from trainables.trial import build_network

STUDY = """\
study: s
task: {kind: segmentation, depth: 3, width: 16}
data: {kind: organs, organ: ct, image_size: SIDE, num_images: 20}
model: {name: timm/test_resnet}
training: {batch_size: 4}
pretraining: STEPS
"""
CONTRASTIVE = "{kind: contrastive, epochs: 1, batch_size: 4}"
SUPERVISED = "{kind: supervised, epochs: 1, batch_size: 4, data: {kind: organs, organ: ultrasound, num_images: 20}}"


def plan(steps: str, tmp_path: Path, cache_dir: Path, *overrides: str, side: int = 32) -> Prepared:
    text = STUDY.replace("SIDE", str(side)).replace("STEPS", steps)
    study = parse_study(text, source="s.yaml", overrides=[f"execution.cache_dir={cache_dir}", *overrides])
    return prepare(study, storage=str(tmp_path / "results"))


def find_first(model: nn.Module) -> nn.Conv2d:
    """Return the first convolution of a network."""
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))


def count_pools(model: nn.Module) -> int:
    return sum(isinstance(module, nn.MaxPool2d) for module in model.modules())


@pytest.mark.parametrize(("side", "stem"), [(32, "original"), (48, "auto")])
def test_a_contrastive_step_trains_the_stem_of_the_segmentation(
    side: int, stem: str, tmp_path: Path, cache_dir: Path
) -> None:
    prepared = plan(CONTRASTIVE, tmp_path, cache_dir, side=side)
    (stage,), (trial,) = prepared.plan.stages, prepared.plan.trials
    assert isinstance(stage.config, StageConfig)
    assert isinstance(trial.config, TrialConfig)
    assert (stage.config.model.stem, trial.config.model.stem) == (stem, "auto")
    data = load_dataset(trial.config.data, cache_dir=cache_dir)
    trained, segmenter = (
        build_network(config.model, config.pretraining.init, data, NoRegulariser(), config.task)  # type: ignore[union-attr]
        for config in (stage.config, trial.config)
    )
    assert count_pools(trained.backbone) == count_pools(segmenter.backbone)
    segmenter.load_encoder(trained.encoder_state(), origin="the step")
    images = torch.rand(2, *data.splits["train"].images.shape[1:])
    with torch.no_grad():
        one, other = (find_first(network)(images) for network in (trained.backbone, segmenter.backbone))
    assert torch.equal(one, other)


def test_a_supervised_step_trains_the_network_of_the_trial(tmp_path: Path, cache_dir: Path) -> None:
    stages = plan(f"[{CONTRASTIVE}, {SUPERVISED}]", tmp_path, cache_dir).plan.stages
    stems = {stage.config.pretraining.kind: stage.config.model.stem for stage in stages}  # type: ignore[union-attr]
    assert stems == {"contrastive": "original", "supervised": "auto"}


def test_a_contrastive_step_after_a_supervised_one_is_refused(tmp_path: Path, cache_dir: Path) -> None:
    message = "found simclr on organs after supervised on organs, which trains a segmentation network.*before it"
    with pytest.raises(StudyError, match=message):
        plan(f"[{SUPERVISED}, {CONTRASTIVE}]", tmp_path, cache_dir)


def test_a_probe_that_does_not_happen_is_said(tmp_path: Path, cache_dir: Path) -> None:
    said = {}
    for setting in ("off", "probe"):
        prepared = plan("scratch", tmp_path, cache_dir, f"execution.acceleration={setting}")
        assert resolve_execution(prepared.study, prepared.ledger).acceleration is None  # results record off
        console = Console(file=StringIO(), width=200)
        announce(prepared, console)
        said[setting] = console.file.getvalue()  # type: ignore[attr-defined]
    assert "probe" not in said["off"]
    assert "probe    none: execution.acceleration: probe times steps of classifications; segmentations" in said["probe"]
