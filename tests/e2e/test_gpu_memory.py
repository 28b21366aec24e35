"""A real trial that has no memory with a share of a GPU: it ends as if it had had a whole one from the start."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path

from orchestrator.cli.trial import run_single
from orchestrator.driver.prepare import prepare, resolve_execution
from orchestrator.driver.shards.run import run_own_slots
from orchestrator.execution.chunk_settings import ChunkSettings
from orchestrator.execution.dispatcher import Dispatcher
from orchestrator.execution.resources import Slots
from orchestrator.execution.work_queue import WorkQueue
from orchestrator.study.study_file import parse_study
from tests.support.cramped_fork_server import MODULE
from tests.support.recording_handler import RecordingHandler, describe

TEXT = """\
study: s
data: {kind: digits, image_size: 16}
model: {name: timm/test_resnet, stem: original}
augmentation: strong
training: {epochs: 4, batch_size: 64, label_fraction: 0.1}
evaluation: {shifts: [gaussian_noise], severities: [3]}
execution: {max_retries: 0, device: cpu}
"""


def test_a_larger_share_continues_from_the_checkpoint_and_changes_no_result(tmp_path: Path, cache_dir: Path) -> None:
    study = parse_study(TEXT, source="s.yaml", overrides=[f"execution.cache_dir={cache_dir}"])
    cramped, alone = (prepare(study, storage=str(tmp_path / name)) for name in ("cramped", "alone"))
    (work,) = alone.plan.works
    run_single(study, work.signature, storage=str(tmp_path / "alone"), echo=lambda line: None)

    handler, said = RecordingHandler(cramped.ledger), list[str]()
    execution = resolve_execution(study).model_dump(mode="json")
    settings = ChunkSettings(execution, uuid.uuid4().hex[:8], MODULE, ("timm/test_resnet",), 0, 600.0, describe)
    todo = WorkQueue(cramped.plan.works, complete=(), num_slots=1)
    dispatcher = Dispatcher(todo, ledger=cramped.ledger, settings=settings, on_event=handler.handle)
    slots = Slots(cpus=1.0, gpus=0.25, max_concurrent=None)
    run_own_slots(dispatcher, {"CPU": 2.0, "GPU": 1.0}, slots, stop=threading.Event(), print_line=said.append)

    assert handler.ends() == {work.name: "complete"}
    assert [line.rpartition(" ")[2] for line in said] == ["0.5", "1"]
    found, expected = (each.ledger.read("trial", work.signature) for each in (cramped, alone))
    assert [(note["gpus"], "CUDA out of memory" in note["message"]) for note in found.attempts] == [
        (0.25, True),
        (0.5, True),
    ]
    epochs = [line["metrics"]["train/loss"] for line in found.epochs]
    assert epochs == [line["metrics"]["train/loss"] for line in expected.epochs]
    assert len(epochs) == 4
    assert found.result is not None
    assert expected.result is not None
    assert found.result["metrics"] == expected.result["metrics"]
    first, second = (each.ledger.folder("trial", work.signature) for each in (cramped, alone))
    assert first.read("model.safetensors") == second.read("model.safetensors")
    assert found.config["identity"] == expected.config["identity"]
