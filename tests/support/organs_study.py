"""A small study of segmentations on two data sets, trained in this process, without Ray. Tests only."""

from __future__ import annotations

from pathlib import Path

from orchestrator.cli.trial import run_single
from orchestrator.driver.prepare import prepare
from orchestrator.study.study_file import load_study

TEXT = """\
study: organs
question: Does training on both help?
task: {kind: segmentation, depth: 3, width: 16, patch_size: 24, patches_per_epoch: 16}
data:
  kind: datasets
  image_size: 32
  datasets:
    ct: {kind: organs, organ: ct, num_images: 20}
    us: {kind: organs, organ: ultrasound, num_images: 20, seed: 1}
model: {name: timm/test_resnet}
training: {epochs: 1, batch_size: 8, learning_rate: 5e-3}
evaluation:
  shifts: [gaussian_noise]
  severities: [3]
  foreign: {digits: {data: {kind: digits, test_fraction: 0.02}, role: far}}
factors:
  trained_on: {ct: {data.train_on: [ct]}, both: {data.train_on: [ct, us]}}
replicates: 2
hypotheses:
- {name: h, claim: It helps., treatment: {trained_on: both}, control: {trained_on: ct}, direction: higher,
   smallest_effect: 0, over: shifts, metric: robustness/mean_dice}
execution: {cache_dir: CACHE}
"""


def train_organs(folder: Path, cache_dir: Path) -> None:
    """Write ``organs.yaml`` and train its four trials, a second each, with ``folder`` as root of the ledger."""
    (folder / "organs.yaml").write_text(TEXT.replace("CACHE", str(cache_dir)))
    study = load_study(folder / "organs.yaml")
    prepared = prepare(study, storage=str(folder))
    prepared.ledger.write_plan(prepared.plan, prepared.about)
    for work in prepared.plan.works:
        run_single(study, work.signature, storage=str(folder), echo=lambda line: None)
