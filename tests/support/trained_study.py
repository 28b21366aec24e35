"""A small study trained in this process, without Ray: two arms × two replicates, with sites. Tests only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.analysis.results import Results, load_results
from orchestrator.cli.trial import run_single
from orchestrator.driver.prepare import prepare
from orchestrator.ledger.ledger import Ledger
from orchestrator.study.study_file import Study, load_study

TEXT = """\
study: small
question: Does strong augmentation help at another site?
data: {kind: phantom, image_size: 32, num_images: 120, num_external_sites: 1, num_external_images: 30}
model: {name: timm/test_resnet, stem: original}
training: {epochs: 2, batch_size: 24, learning_rate: 0.003}
evaluation: {shifts: [gaussian_noise, contrast_down], severities: [1, 5], representation: {layers: auto}}
factors: {augmentation: [none, strong]}
replicates: 2
execution: {cache_dir: CACHE}
"""


@dataclass(frozen=True)
class TrainedStudy:
    """A study file, its ledger and its tables; not to be changed by a test."""

    file: Path
    storage: Path
    cache_dir: Path

    @property
    def study(self) -> Study:
        return load_study(self.file)

    @property
    def ledger(self) -> Ledger:
        return Ledger(str(self.storage), "small")

    @property
    def results(self) -> Results:
        return load_results(self.ledger)


def find_study(folder: Path) -> TrainedStudy:
    """Return the study that ``train_study`` has trained in ``folder``."""
    return TrainedStudy(folder / "small.yaml", folder / "results", folder / "cache")


def train_study(folder: Path) -> None:
    """Train all four trials, a second each."""
    trained = find_study(folder)
    trained.file.write_text(TEXT.replace("CACHE", str(trained.cache_dir)))
    prepared = prepare(trained.study, storage=str(trained.storage))
    prepared.ledger.write_plan(prepared.plan, prepared.about)
    for work in prepared.plan.works:
        run_single(trained.study, work.signature, storage=str(trained.storage), echo=lambda line: None)
