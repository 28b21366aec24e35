from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

#: Runs in a process of its own: preloads, forks for each piece of work, and prints what the forks imported.
_CODE = """
import os, sys
from pathlib import Path

from trainables.preload import preload

preload(["timm/test_resnet", "shufflenet_v2_x0_5"], contrastive=True)

import torch
from tests.support.tiny_configs import tiny_stage, tiny_trial
from trainables.config import Execution
from trainables.storage.folder import Folder
from trainables.stage import run_stage
from trainables.trial import run_trial

assert not torch.cuda.is_initialized()
if sys.platform == "linux":
    assert len(os.listdir("/proc/self/task")) == 1
execution = Execution(device="cpu", cache_dir=Path(sys.argv[1]) / "cache")
trial = tiny_trial(
    model={"name": "timm/test_resnet"},
    training={"epochs": 1, "label_fraction": 0.05},
    augmentation={"kind": "strong", "crop_scale_min": 0.3, "erasing": 0.5},
    regulariser={"kind": "mixup"},
    evaluation={"shifts": ["jpeg", "gaussian_noise"], "severities": [3]},
)
for name, run, config in (("trial", run_trial, trial), ("stage", run_stage, tiny_stage(epochs=1))):
    sys.stdout.flush()
    if os.fork() == 0:
        before, code = set(sys.modules), 1
        try:
            run(config, signature="s", folder=Folder(Path(sys.argv[1]) / name), execution=execution)
            print(name, sorted(set(sys.modules) - before))
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
os._exit(0)
"""


def test_a_forked_process_imports_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "-c", _CODE, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["trial []", "stage []"]
