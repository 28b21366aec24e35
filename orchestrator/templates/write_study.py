"""Writing of a commented study file for somebody's images, sized so that it ends in a given time on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.study.study_file import Study, parse_study
from orchestrator.templates.find_data import FoundData, MaxSide, describe_found, find_source
from orchestrator.templates.find_masks import find_mask_folders, find_named_pairs, write_pairs
from orchestrator.templates.forms import CLASSIFICATION, SEGMENTATION, StudyForm, write_contrastive_batch, write_repeats
from trainables.cpus import count_cpus
from trainables.errors import RobustSweepError, StudyError

if TYPE_CHECKING:
    from trainables.pilot import PilotTimings

#: Fewest and most epochs that are written. Assumption: fewer say little about an arm, more are for later.
MIN_EPOCHS, MAX_EPOCHS = 3, 30
#: Replicates of every arm: six are the fewest with which a paired test can be significant.
REPLICATES = 6
#: Seconds of a trial that the pilot does not time: start, shifts, checkpoints. Measured on 2 cores: 1 to 2.
OVERHEAD_SECONDS = 1.5
#: Largest sides in px without and with a GPU, unless the images are smaller.
MAX_SIDE_CPU, MAX_SIDE_GPU = MaxSide(of_images=64, of_masks=128), MaxSide(of_images=224, of_masks=512)


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
        source: CSV manifest, folder of images, with masks or without, or npz in MedMNIST's form. Of images and masks
            that are told apart by their names a manifest is written beside the study.
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
    manifest, source = out.with_name(f"{out.stem}-pairs.csv"), source.expanduser().absolute()
    pairs = find_named_pairs(source) if source.is_dir() and find_mask_folders(source) is None else []
    if not pairs:
        return _write(source, {}, out, minutes=minutes, cache_dir=cache_dir, has_gpu=has_gpu)
    write_pairs(pairs, source, manifest)
    try:
        return _write(manifest, {"root": str(source)}, out, minutes=minutes, cache_dir=cache_dir, has_gpu=has_gpu)
    except RobustSweepError:
        manifest.unlink()
        raise


def _write(
    source: Path, added: Mapping[str, str], out: Path, *, minutes: float, cache_dir: Path, has_gpu: bool
) -> Written:
    """Write the study of a source with added settings of its data, see ``write_study``."""
    from trainables.data.load import load_dataset

    root = Path(added.get("root", source))
    name = _name_study(root)
    max_side = MAX_SIDE_GPU if has_gpu else MAX_SIDE_CPU
    settings = find_source(source, max_side=max_side, root=added.get("root"))
    settings |= {**added, "on_leak": "quarantine"}
    draft = parse_study(json.dumps({"study": name, "data": settings}), source=str(out), folder=out.parent)
    found = describe_found(settings, load_dataset(draft.data, cache_dir=cache_dir))
    found.settings.update({key: _relate(Path(settings[key]), out) for key in ("path", *added)})
    slots, form = 1 if has_gpu else count_cpus(), SEGMENTATION if found.has_masks else CLASSIFICATION
    values = {"file": out, "name": name, "has_gpu": has_gpu, "found": found, "form": form}
    text = _fill(values, epochs=MIN_EPOCHS, sizing="")
    timings = _time(parse_study(text, source=str(out), folder=out.parent), cache_dir)
    times = timings.epoch_seconds, timings.evaluation_seconds
    epochs = choose_epochs(form, *times, slots=slots, seconds=60 * minutes)
    seconds = estimate_seconds(form, epochs, *times, slots=slots)
    where = "a GPU" if has_gpu else f"{slots} CPU core{'s' * (slots > 1)}"
    study_text = _fill(
        values, epochs=epochs, sizing=f"the whole study takes about {max(seconds / 60, 1):.0f} min on {where}"
    )
    study = parse_study(study_text, source=str(out), folder=out.parent)
    out.write_text(study_text, encoding="utf-8")
    return Written(out, study, form.num_arms * REPLICATES, seconds)


def estimate_seconds(
    form: StudyForm, epochs: int, epoch_seconds: float, evaluation_seconds: float, *, slots: int
) -> float:
    """Return the seconds that the study takes with so many epochs, its stages included."""
    trials = form.num_arms * REPLICATES * (epochs * epoch_seconds + evaluation_seconds + OVERHEAD_SECONDS)
    return (trials + form.stage_trials * epochs * epoch_seconds) / slots


def choose_epochs(
    form: StudyForm, epoch_seconds: float, evaluation_seconds: float, *, slots: int, seconds: float
) -> int:
    """Return the most epochs, from ``MIN_EPOCHS`` to ``MAX_EPOCHS``, with which the study ends within ``seconds``."""
    fitting = [
        epochs
        for epochs in range(MIN_EPOCHS, MAX_EPOCHS + 1)
        if estimate_seconds(form, epochs, epoch_seconds, evaluation_seconds, slots=slots) <= seconds
    ]
    return max(fitting, default=MIN_EPOCHS)


def _fill(values: Mapping[str, Any], *, epochs: int, sizing: str) -> str:
    found: FoundData = values["found"]
    form: StudyForm = values["form"]
    lines = []
    for key, value in found.settings.items():
        comment = f" # {found.comments[key]}" if key in found.comments else ""
        lines.append(f"  {key}: {_format(value)}{comment}")
    weights = "  class_weights: balanced # one class has more than twice the images of another\n"
    return form.text.substitute(
        file=values["file"],
        name=values["name"],
        small="" if values["has_gpu"] else form.small,
        repeats=write_repeats(found.num_train),
        facts="\n".join(f"#   {fact}" for fact in found.facts),
        data="\n".join(lines),
        epochs=epochs,
        contrastive_epochs=2 * epochs,
        sizing=sizing,
        batch_size=form.choose_batch(found.num_train),
        contrastive_batch=write_contrastive_batch(found.num_train),
        replicates=REPLICATES,
        class_weights=weights if found.has_imbalance else "",
    )


def _format(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_format(each)}" for key, each in value.items()) + "}"
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
