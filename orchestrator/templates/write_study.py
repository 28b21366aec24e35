"""Writing of a commented study file for somebody's images, sized so that it ends in a given time on this machine."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from orchestrator.study.study_file import Study, parse_study
from orchestrator.templates.find_data import FoundData, describe_found, find_source
from trainables.cpus import count_cpus
from trainables.errors import StudyError
from trainables.pretraining_config import ContrastivePretraining

if TYPE_CHECKING:
    from trainables.pilot import PilotTimings

#: Fewest and most epochs that are written. Assumption: fewer say little about an arm, more are for later.
MIN_EPOCHS, MAX_EPOCHS = 3, 30
#: Arms (3 pretrainings × 2 augmentations × 2 regularisers), replicates, and trials that one contrastive stage costs:
#: two views, twice the epochs.
ARMS, REPLICATES, STAGE_TRIALS = 12, 6, 4
#: Seconds of a trial that the pilot does not time: start, shifts, checkpoints. Measured on 2 cores: 1 to 2.
OVERHEAD_SECONDS = 1.5
#: Largest side of an image in px without and with a GPU, unless the images are smaller.
MAX_SIDE_CPU, MAX_SIDE_GPU = 64, 224

#: What makes a network small enough for CPUs.
_STAGES = """\
  stages: 3 # of 5: enough for small images, and a tenth of the time on a CPU (docs/networks.md)
  stem: original # halves the side first: a quarter of the time
"""
_TEXT = Template("""\
# Which training choices hold up on these images? Written by robustsweep init; change anything.
# Look first: robustsweep plan $file
# Run it:     robustsweep run $file      (again after any interruption)
#
# What was found:
$facts
study: $name
question: Do pretraining, strong augmentation and spectral decoupling make a network hold up under image shifts?

data:
$data

# What all trials share. Anything that is not written here has its default.
model:
  name: timm/tf_efficientnet_lite0 # with ImageNet weights that are installed along; or any of torchvision or timm
${stages}training:
  epochs: $epochs # sized: $sizing
  batch_size: $batch_size
  learning_rate: 1e-3
$class_weights
# What varies. Every combination of levels is an arm: 3 x 2 x 2 = 12.
factors:
  pretraining:
    scratch: scratch
    imagenet:
      kind: imagenet
      on_unavailable: skip # where no weights can be had these arms are left out, and the report says so
    contrastive: # SimCLR on the training images: done once, shared by all trials that start from it
      kind: contrastive
      epochs: $contrastive_epochs # from ImageNet: a list, [imagenet, {kind: contrastive, …}] (docs/pretraining.md)
${contrastive_batch}  augmentation: [none, strong]
  regulariser: [none, spectral_decoupling]

# Independent trainings of every arm: six are the fewest with which a paired test can be significant.
replicates: $replicates

# What you expect, before anything has run. Delete it, or state your own (docs/hypotheses.md).
hypotheses:
  - name: strong-augmentation-holds-up
    claim: From scratch or ImageNet, strong augmentation raises balanced accuracy under shift by two points or more.
    treatment: {augmentation: strong}
    control: {augmentation: none}
    where: {pretraining: [scratch, imagenet]}
    direction: higher
    smallest_effect: 0.02

# Every trained model is tested on the unshifted test images and under every shift of the bank, at these severities.
evaluation:
  severities: [1, 3, 5]
  # modality: chest_xray # severity tables made for fundus, dermoscopy, chest_xray or pathology
""")


@dataclass(frozen=True)
class Written:
    """A study file that was written: its place, its content as read again, and how long it should take."""

    path: Path
    study: Study
    num_trials: int
    seconds: float


def write_study(source: Path, out: Path, *, minutes: float, cache_dir: Path, has_gpu: bool) -> Written:
    """Look at the images at ``source`` and write a study of them to ``out`` that takes about ``minutes`` here.

    Args:
        source: CSV manifest, folder of images, or npz in MedMNIST's form.
        out: study file to write; must not exist.
        minutes: time that all trials together should take on this machine.
        cache_dir: cache of decoded images.
        has_gpu: whether trials run on a GPU.

    Raises:
        StudyError: ``out`` exists.
        DataError: the images are unusable; every problem is named.
    """
    if out.exists():
        raise StudyError(f"init: {out} is there already; name another file with --out, or remove it")
    from trainables.data.load import load_dataset

    name = _name_study(source)
    settings = find_source(source.expanduser().absolute(), max_side=MAX_SIDE_GPU if has_gpu else MAX_SIDE_CPU)
    settings["on_leak"] = "quarantine"
    draft = parse_study(json.dumps({"study": name, "data": settings}), source=str(out), folder=out.parent)
    found = describe_found(settings, load_dataset(draft.data, cache_dir=cache_dir))
    found.settings["path"] = _relate(source, out)
    slots = 1 if has_gpu else count_cpus()
    values = {"file": out, "name": name, "has_gpu": has_gpu, "found": found}
    text = _fill(values, epochs=MIN_EPOCHS, sizing="")
    timings = _time(parse_study(text, source=str(out), folder=out.parent), cache_dir)
    epochs = choose_epochs(timings.epoch_seconds, timings.evaluation_seconds, slots=slots, seconds=60 * minutes)
    seconds = estimate_seconds(epochs, timings.epoch_seconds, timings.evaluation_seconds, slots=slots)
    where = "a GPU" if has_gpu else f"{slots} CPU core{'s' * (slots > 1)}"
    study_text = _fill(
        values, epochs=epochs, sizing=f"the whole study takes about {max(seconds / 60, 1):.0f} min on {where}"
    )
    study = parse_study(study_text, source=str(out), folder=out.parent)
    out.write_text(study_text, encoding="utf-8")
    return Written(out, study, ARMS * REPLICATES, seconds)


def estimate_seconds(epochs: int, epoch_seconds: float, evaluation_seconds: float, *, slots: int) -> float:
    """Return the seconds that the study takes with so many epochs, its contrastive stage included."""
    trials = ARMS * REPLICATES * (epochs * epoch_seconds + evaluation_seconds + OVERHEAD_SECONDS)
    return (trials + STAGE_TRIALS * epochs * epoch_seconds) / slots


def choose_epochs(epoch_seconds: float, evaluation_seconds: float, *, slots: int, seconds: float) -> int:
    """Return the most epochs, from ``MIN_EPOCHS`` to ``MAX_EPOCHS``, with which the study ends within ``seconds``."""
    fitting = [
        epochs
        for epochs in range(MIN_EPOCHS, MAX_EPOCHS + 1)
        if estimate_seconds(epochs, epoch_seconds, evaluation_seconds, slots=slots) <= seconds
    ]
    return max(fitting, default=MIN_EPOCHS)


def _fill(values: Mapping[str, Any], *, epochs: int, sizing: str) -> str:
    found: FoundData = values["found"]
    lines = []
    for key, value in found.settings.items():
        comment = f" # {found.comments[key]}" if key in found.comments else ""
        lines.append(f"  {key}: {_format(value)}{comment}")
    weights = "  class_weights: balanced # one class has more than twice the images of another\n"
    return _TEXT.substitute(
        file=values["file"],
        name=values["name"],
        stages="" if values["has_gpu"] else _STAGES,
        facts="\n".join(f"#   {fact}" for fact in found.facts),
        data="\n".join(lines),
        epochs=epochs,
        contrastive_epochs=2 * epochs,
        sizing=sizing,
        batch_size=64 if found.num_train >= 640 else min(32, found.num_train),
        contrastive_batch=_write_contrastive_batch(found.num_train),
        replicates=REPLICATES,
        class_weights=weights if found.has_imbalance else "",
    )


def _write_contrastive_batch(num_train: int) -> str:
    """Return the line of a contrastive batch for few training images: half of them, to a power of two; else nothing."""
    default = ContrastivePretraining.model_fields["batch_size"].default
    largest = 2 ** int(math.log2(max(num_train // 2, 2)))
    return f"      batch_size: {largest} # of {num_train} training images\n" if largest < default else ""


def _format(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) and not re.fullmatch(r"[\w./-]+", value) else str(value)


def _time(study: Study, cache_dir: Path) -> PilotTimings:
    """Return the timings of a few steps of the study's first arm."""
    from trainables.config import Execution
    from trainables.pilot import time_trial

    return time_trial(study.arms()[0].config, Execution(cache_dir=cache_dir), max_seconds=20.0)


def _name_study(source: Path) -> str:
    """Return a name for the study, of the characters that it may have."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", source.expanduser().absolute().stem).strip("-._")
    return stem[:100] or "study"


def _relate(source: Path, out: Path) -> str:
    """Return the path of the data as the study file has it: relative where it lies below the file's folder."""
    source, folder = source.expanduser().absolute(), out.absolute().parent
    return source.relative_to(folder).as_posix() if source.is_relative_to(folder) else str(source)
