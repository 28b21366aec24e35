"""Run a tiny trial or stage without interruption, and again with real SIGKILLs at chosen points; compare afterwards.

``python sigkill.py CACHE FOLDER CASE/POINT …``: ``FOLDER/<case>/whole`` was never interrupted, and
``FOLDER/<case>/<point>`` was killed at that point and called again. Each call is a fresh process, forked before any
tensor was computed.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightly.loss  # noqa: F401 – imported here once, not in every process
import torch
import torchvision.models  # noqa: F401

from tests.support.tiny_configs import tiny_stage, tiny_trial
from trainables.config import Execution, StageConfig
from trainables.data_config import PhantomData
from trainables.stage import run_stage
from trainables.storage.folder import Folder
from trainables.trial import run_trial

#: 144 training, 48 validation and 48 test images.
DATA = {"kind": "phantom", "image_size": 16, "channels": 1, "num_images": 240, "num_sites": 1, "num_external_sites": 0}
TRAINING = {"epochs": 4, "batch_size": 32, "label_fraction": 0.65}
#: First step of a chain, with the labels of other images.
SUPERVISED = {
    "kind": "supervised",
    "data": {**DATA, "seed": 5},
    "epochs": 3,
    "batch_size": 72,
    "crop_scale_min": 0.5,
}


def _make_stage(**pretraining: Any) -> StageConfig:
    return tiny_stage(**pretraining).model_copy(update={"data": PhantomData.model_validate(DATA)})


CASES = {
    "mixup": tiny_trial(
        data=DATA,
        augmentation={"kind": "strong", "erasing": 0.3, "crop_scale_min": 0.5},
        regulariser={"kind": "mixup"},
        training=TRAINING,
        evaluation={"shifts": ["gaussian_noise"], "severities": [3]},
    ),
    "dropout": tiny_trial(
        data=DATA,
        regulariser={"kind": "dropout"},
        training={**TRAINING, "optimiser": "sgd", "warmup_epochs": 1.5, "select_by": "loss", "gradient_clip_norm": 1.0},
        evaluation={"shifts": ["gaussian_noise"], "severities": [3]},
    ),
    "confidnet": tiny_trial(
        data=DATA,
        training={
            **TRAINING,
            "epochs": 1,
            "confidence": {"kind": "confidnet", "epochs": 1, "fine_tuning_epochs": 2, "hidden_units": 16},
        },
        evaluation={"shifts": [], "mc_dropout": 3},
        regulariser={"kind": "dropout"},
    ),
    "stage": _make_stage(epochs=3, batch_size=72),
    "supervised": _make_stage(**SUPERVISED),
    "second": _make_stage(epochs=3, batch_size=72, init=SUPERVISED),
    "transferred": tiny_trial(
        data=DATA,
        pretraining={"kind": "contrastive", "epochs": 3, "batch_size": 72, "init": SUPERVISED},
        training=TRAINING,
        evaluation={"shifts": ["gaussian_noise"], "severities": [3]},
    ),
}
#: Case → the case whose finished stage it starts from: a chain of two trained steps and fine-tuning.
STARTS = {"second": "supervised", "transferred": "second"}
#: Points of every case; a step of the stages' epochs is one half of them.
POINTS = {
    "mixup": ("in-epoch-3", "between-the-writes", "in-evaluation"),
    "dropout": ("after-epoch-2",),
    "confidnet": ("in-epoch-3", "before-the-line"),
    "stage": ("in-epoch-3",),
    "supervised": ("in-epoch-3",),
    "second": ("in-epoch-3",),
    "transferred": ("in-epoch-3",),
}
#: Points that code which is shared has passed in another case above.
MORE_POINTS = {
    "mixup": ("before-the-line",),
    "dropout": ("in-epoch-3",),
    "confidnet": ("after-epoch-2", "between-the-writes"),
    "stage": ("after-epoch-2",),
}
#: Cases that are stages.
STAGES = ("stage", "supervised", "second")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_before(owner: Any, method: str, is_now: Callable[..., bool]) -> None:
    original = getattr(owner, method)

    def replacement(*args: Any, **kwargs: Any) -> Any:
        if is_now(*args):
            _die()
        return original(*args, **kwargs)

    setattr(owner, method, replacement)


def _arm(point: str, case: str) -> None:
    """Make this process kill itself at ``point``."""
    counts = {"steps": 0, "checkpoints": 0, "lines": 0}

    def count(key: str, last: int, happens: bool) -> bool:
        counts[key] += happens
        return counts[key] == last

    if point == "in-epoch-3":
        last = 6 if case in STAGES else 2 * _num_steps() + 2
        for optimiser in (torch.optim.Adam, torch.optim.SGD):  # AdamW steps as Adam does
            _die_before(optimiser, "step", lambda *args: count("steps", last, True))
    elif point == "between-the-writes":
        _die_before(Folder, "write", lambda _, name, data: count("checkpoints", 3, name == "checkpoint.safetensors"))
    elif point == "before-the-line":
        _die_before(Folder, "append_line", lambda *args: count("lines", 3, True))
    elif point == "in-evaluation":
        _die_before(Folder, "write", lambda _, name, data: name == "predictions/test.npz")


def _num_steps() -> int:
    from trainables.data.batches import TrainingImages
    from trainables.data.load import load_dataset

    config = CASES["dropout"]  # as many images and as large batches as the other trials
    return TrainingImages(
        load_dataset(config.data, cache_dir=CACHE).splits["train"], config, torch.device("cpu")
    ).num_batches


def _call(case: str, folder: Path, point: str | None) -> int:
    """Run the case in a forked process; return its exit code, negative for a signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        if point is not None:
            _arm(point, case)

        def report(event: dict[str, Any]) -> None:
            if point == "after-epoch-2" and event["event"] == "epoch" and event["epoch"] == 2:
                _die()

        run: Any = run_stage if case in STAGES else run_trial
        start = STARTS.get(case)
        # What was killed starts from what was killed, where there is such a folder.
        encoder = None if start is None else Folder(folder.parents[1] / start / folder.name)
        execution = Execution(cache_dir=CACHE)
        run(CASES[case], signature=case, folder=Folder(folder), execution=execution, encoder=encoder, report=report)
        code = 0
    finally:
        os._exit(code)


def _check(root: Path, case: str, point: str | None) -> None:
    """Run a case without interruption, or until it is killed at ``point`` and once more."""
    if point is None:
        assert _call(case, root / case / "whole", None) == 0, case
        return
    assert _call(case, root / case / point, point) == -signal.SIGKILL, (case, point)
    assert not (root / case / point / "result.json").exists()
    assert _call(case, root / case / point, None) == 0, (case, point)


def _start(root: Path, case: str, point: str | None) -> int:
    """Return the pid of a forked process that runs ``_check``."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        _check(root, case, point)
        code = 0
    except AssertionError:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    CACHE, root = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    asked: dict[str, dict[str, None]] = {case: {} for case in CASES}
    for case, point in (word.split("/") for word in sys.argv[3:]):
        start: str | None = case
        while start is not None:  # what it starts from has to be killed at the same point
            asked[start][point] = None
            start = STARTS.get(start)
    first, *jobs = [(case, point) for case, points in asked.items() if points for point in (None, *points)]
    _check(root, *first)  # and all find the images in the cache
    for number in range(0, len(jobs), 2):  # a chain's steps after each other: the two jobs of each start together
        children = [_start(root, *job) for job in jobs[number : number + 2]]
        ends = [os.waitpid(child, 0)[1] for child in children]
        assert ends == [0] * len(children), jobs[number : number + 2]
