"""A small trained segmentation, served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cli.trial import run_single
from orchestrator.driver.prepare import prepare
from orchestrator.explorer.serve import Served, serve
from orchestrator.explorer.study import ExploredStudy
from orchestrator.study.study_file import load_study

STUDY = """\
study: discs
question: Are organs found?
task: {kind: segmentation, depth: 3, width: 16, patch_size: 24, patches_per_epoch: 32}
data: {kind: organs, organ: ct, image_size: 32, num_images: 40}
model: {name: timm/test_resnet}
training: {epochs: 2, batch_size: 8, learning_rate: 0.005}
evaluation:
  shifts: [contrast_down]
  severities: [3]
  foreign: {fundus: {data: {kind: organs, organ: fundus, num_images: 40}, role: near}} # with masks of other classes
factors: {augmentation: [none]}
replicates: 1
execution: {cache_dir: CACHE}
"""


@pytest.fixture(scope="session")
def study_file(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """The file of the study, trained in this process; results lie beside it."""
    folder = tmp_path_factory.mktemp("discs")
    file = folder / "discs.yaml"
    file.write_text(STUDY.replace("CACHE", str(cache_dir)))
    study, storage = load_study(file), str(folder / "results")
    prepared = prepare(study, storage=storage)
    prepared.ledger.write_plan(prepared.plan, prepared.about)
    for work in prepared.plan.works:
        run_single(study, work.signature, storage=storage, echo=lambda line: None)
    return file


@pytest.fixture(scope="session")
def segmented(study_file: Path, cache_dir: Path) -> Iterator[ExploredStudy]:
    from orchestrator.ledger.ledger import Ledger

    found = ExploredStudy(Ledger(str(study_file.parent / "results"), "discs"), cache_dir)
    yield found
    found.close()


@pytest.fixture(scope="session")
def served_cases(segmented: ExploredStudy) -> Iterator[Served]:
    with serve(segmented) as found:
        yield found
