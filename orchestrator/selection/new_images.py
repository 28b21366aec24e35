"""Evaluation of trained networks on images that their study did not have: an exported one, or all trials of a study.

    models.csv   a row per network: its metrics, and the share of images that each detector calls foreign
    cases.csv    a row per network and image

Of a study the metrics are added to its trials as those of an external set, ``external/<name>/…``, with
``ood/<detector>/<name>/sensitivity``; trials that have them are not evaluated again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from orchestrator.ledger.added_metrics import ADDED, has_added, read_added, sign_request, write_added
from orchestrator.ledger.derived import invalidate
from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.states import COMPLETE
from orchestrator.statistics.intervals import summarise
from orchestrator.study.study_file import parse_study
from trainables.config import read_trial_config
from trainables.data.splits import is_set_name
from trainables.errors import DataError, StudyError
from trainables.evaluation.metrics import CARD_METRICS, EVALUATED, name_ood
from trainables.storage.folder import Folder

if TYPE_CHECKING:
    from trainables.data.dataset import Dataset
    from trainables.exported.form import ExportedConfig
    from trainables.exported.network import ExportedNetwork, NewEvaluation

MODELS, CASES = "models.csv", "cases.csv"
#: Data settings that are those of the network.
_OF_THE_NETWORK = ("image_size", "channels", "resize", "window", "scale", "frame")


@dataclass(frozen=True)
class NewImages:
    """Images that a study did not have."""

    #: Name of the set, in metrics and tables.
    name: str
    #: Section ``data`` of a study, without what is said by the network.
    settings: Mapping[str, Any]
    #: File that says so, and folder at which its paths start.
    source: str
    folder: Path
    #: Data set of the study among whose classes pixels are told apart; None: all classes.
    data_set: str | None = None


@dataclass(frozen=True)
class EvaluatedModels:
    """Tables of an evaluation, and where they lie."""

    models: pd.DataFrame
    cases: pd.DataFrame
    folder: Folder
    #: Networks that were evaluated, and those that had been before.
    num_new: int


def evaluate_exported(exported: Folder, images: NewImages, *, out: Folder | None, cache_dir: Path) -> EvaluatedModels:
    """Evaluate an exported network and write the tables.

    Args:
        exported: folder that ``robustsweep select`` wrote.
        images: the images.
        out: folder of the tables; None for ``evaluated/<name>`` in that of the network.
        cache_dir: folder of decoded images on this node.

    Raises:
        RobustSweepError: any of its subclasses; nothing is written.
    """
    from trainables.exported.folder import load_exported

    _check_name(images.name, known=())
    model = load_exported(exported)
    origin = model.config.provenance
    about: dict[str, Any] = {key: origin[key] for key in ("arm", "replicate", "signature") if key in origin}
    found = _evaluate(model, load_new(images, model.config, cache_dir=cache_dir), images)
    cases = _say_whose(about, pd.DataFrame(found.cases))
    return _write([{**about, **describe_model(found)}], [cases], out or exported / "evaluated" / images.name, 1)


def evaluate_study(
    ledger: Ledger,
    images: NewImages,
    *,
    out: Folder | None,
    cache_dir: Path,
    on_trial: Callable[[int, int], None] = lambda done, total: None,
) -> EvaluatedModels:
    """Evaluate the network of every complete trial, add its metrics to the trial, and write the tables.

    The caller holds the lease.

    Args:
        ledger: ledger of the study.
        images: the images.
        out: folder of the tables; None for ``evaluated/<name>`` in the ledger.
        cache_dir: folder of decoded images on this node.
        on_trial: callback with the numbers of trials that are done and of all.

    Raises:
        RobustSweepError: any of its subclasses; trials before that have the metrics.
    """
    plan, states = ledger.read_plan(), ledger.states()
    planned = [trial for trial in plan["trials"] if states.get(trial["signature"]) == COMPLETE]
    if not planned:
        raise StudyError(f"asked to evaluate {plan['study']} on new images, and no trial is complete; run it first")
    _check_name(images.name, known=_list_known(ledger, [trial["signature"] for trial in planned]))
    invalidate(ledger.root)
    models, cases, num_new = [], [], 0
    for number, trial in enumerate(planned, start=1):
        about = {"arm": trial["name"], "replicate": trial["replicate"], "signature": trial["signature"]}
        added = _evaluate_trial(ledger, trial["signature"], images, cache_dir=cache_dir)
        num_new += added.is_new
        models.append({**about, **added.model})
        cases.append(_say_whose(about, added.cases))
        on_trial(number, len(planned))
    return _write(models, cases, out or ledger.root / "evaluated" / images.name, num_new)


@dataclass(frozen=True)
class Added:
    """Findings about one network."""

    #: Its row in ``models.csv``, and its rows in ``cases.csv``, without the columns that say which network it is.
    model: Mapping[str, Any]
    cases: pd.DataFrame
    #: False if it had been evaluated before.
    is_new: bool


def _evaluate_trial(ledger: Ledger, signature: str, images: NewImages, *, cache_dir: Path) -> Added:
    from trainables.data.load import load_dataset
    from trainables.exported.folder import build_exported
    from trainables.exported.segmenter import describe_pixels

    folder, record = ledger.folder("trial", signature), ledger.read("trial", signature)
    config = read_trial_config(record.config["config"])
    own = load_dataset(config.data, cache_dir=cache_dir)
    model = build_exported(folder, config, classes=own.classes, provenance={}, pixels=describe_pixels(folder, own))
    data = load_new(images, model.config, cache_dir=cache_dir)
    asked = {"new_images": images.name, "fingerprint": data.fingerprint, "data_set": images.data_set}
    request = sign_request(signature, asked)
    _check_same(folder, asked)
    cases = f"{ADDED}/{request}.csv"
    if has_added(folder, request) and folder.exists(cases):
        table = pd.read_csv(io.BytesIO(folder.read(cases)), dtype={"id": str, "site": str}, keep_default_na=False)
        return Added(folder.read_json(f"{ADDED}/{request}.json")["models"], table, is_new=False)
    found = _evaluate(model, data, images)
    metrics = {f"external/{images.name}/{name}": value for name, value in found.metrics.values.items()}
    metrics |= {name_ood(name, images.name, "sensitivity"): share for name, share in found.flagged.items()}
    done = Added(describe_model(found), pd.DataFrame(found.cases), is_new=True)
    folder.write(cases, done.cases.to_csv(index=False).encode())
    content = asked | {"metrics": metrics, "undefined": found.metrics.undefined, "models": done.model}
    write_added(folder, request, content)
    return done


def _evaluate(model: ExportedNetwork, data: Dataset, images: NewImages) -> NewEvaluation:
    import torch

    if torch.cuda.is_available():
        model = model.cuda()
    sets = [*data.splits.values(), *data.external.values(), *data.ood.values()]
    return model.evaluate(sets, data.classes, data_set=images.data_set)


def load_new(images: NewImages, config: ExportedConfig, *, cache_dir: Path) -> Dataset:
    """Return the images at the size and with the channels of a network.

    Raises:
        StudyError: a setting is the network's, or unknown.
        DataError: the images are unusable.
    """
    from trainables.data.load import load_dataset

    said = sorted({*images.settings} & {*_OF_THE_NETWORK})
    if said:
        raise StudyError(
            f"{images.source}: found {', '.join(said)}, in which new images are read as those of training; expected it "
            "left out"
        )
    form = config.images.model_dump(mode="json")
    form["image_size"] = form.pop("size_px")
    settings = {
        **images.settings,
        "on_leak": "quarantine",
        "near_duplicates": "ignore",
        **{key: value for key, value in form.items() if value is not None},
    }
    foreground, kind = config.classes[1:], str(settings.get("kind"))
    if kind.startswith("image_mask_") and len(foreground) == 1 and "mask_values" not in settings:
        settings.setdefault("foreground", foreground[0])  # masks of two values do not say what the second is
    text = json.dumps({"study": "new-images", "data": settings})
    study = parse_study(text, source=images.source, folder=images.folder)
    return load_dataset(study.data, cache_dir=cache_dir)


def _check_same(trial: Folder, asked: Mapping[str, Any]) -> None:
    """Check that a trial has no metrics of other images under the same name: the first ones would stay.

    Raises:
        StudyError: it has.
    """
    for each in read_added(trial):
        if each.get("new_images") == asked["new_images"] and any(each[key] != value for key, value in asked.items()):
            raise StudyError(
                f"--name: asked to evaluate images as {asked['new_images']!r} (fingerprint {asked['fingerprint']}, "
                f"data set {asked['data_set']}), and {trial.uri} has metrics of others by that name (fingerprint "
                f"{each['fingerprint']}, data set {each['data_set']}); give these another name"
            )


def _check_name(name: str, *, known: Sequence[str]) -> None:
    if not is_set_name(name) or name in known:
        raise StudyError(
            f"--name: found {name!r}, which is not allowed or taken; expected letters, digits, '_', '-', '.' or blanks "
            f"inside, and none of train, val, test, {', '.join(known)}"
        )


def _list_known(ledger: Ledger, signatures: Sequence[str]) -> list[str]:
    """Return the names of the sets that the trials were evaluated on by their study."""
    record = ledger.read("trial", signatures[0])
    assert record.result is not None
    foreign = record.config["config"]["evaluation"].get("foreign", {})
    return sorted({row["set"] for row in record.result["evaluations"]} | {*foreign})


def describe_model(found: NewEvaluation) -> dict[str, Any]:
    """Return what ``models.csv`` says of a network."""
    return {**found.counts, **found.metrics.values, **{f"{name} foreign": v for name, v in found.flagged.items()}}


def _say_whose(about: Mapping[str, Any], cases: pd.DataFrame) -> pd.DataFrame:
    """Return the cases with columns before them that say which network it is."""
    return pd.concat([pd.DataFrame([about] * len(cases), index=cases.index), cases], axis=1)


def _write(
    models: Sequence[Mapping[str, Any]], cases: Sequence[pd.DataFrame], folder: Folder, num_new: int
) -> EvaluatedModels:
    done = EvaluatedModels(pd.DataFrame(models), pd.concat(cases, ignore_index=True), folder, num_new)
    for name, table in ((MODELS, done.models), (CASES, done.cases)):
        folder.write(name, table.to_csv(index=False).encode())
    return done


def tell_models(done: EvaluatedModels) -> Iterator[str]:
    """Yield the metrics of every arm that a model card shows, as lines."""
    table = done.models
    shown = [name for listed in CARD_METRICS.values() for name in listed if name in table]
    shares = [name for name in table if str(name).endswith(" foreign")]
    for arm, rows in table.groupby("arm", sort=False):
        parts = []
        for name in (*shown, *shares):
            summary = summarise(rows[name])
            if summary.mean is not None:
                spread = "" if summary.sd is None else f" ± {summary.sd:.4f}"
                title = EVALUATED[name].title if name in EVALUATED else name
                parts.append(f"{title} {summary.mean:.4f}{spread}")
        yield f"{arm} (n = {len(rows)}): {', '.join(parts)}"


def read_new_images(
    path: Path, *, name: str | None, data_set: str | None, find: Callable[[], dict[str, Any]]
) -> NewImages:
    """Return the images that a user names.

    Args:
        path: file of data settings (YAML), manifest or folder.
        name: value of ``--name``; None: that of the file or folder.
        data_set: value of ``--data-set``.
        find: returns the settings of a manifest or folder.

    Raises:
        StudyError: the file of settings cannot be read.
        DataError: there is nothing at the path.
    """
    from orchestrator.study.yaml_source import read_yaml

    path = path.expanduser().absolute()
    name = name or path.stem
    if path.suffix.lower() not in (".yaml", ".yml"):
        found = {key: value for key, value in find().items() if key not in _OF_THE_NETWORK}
        return NewImages(name, found, str(path), path.parent, data_set)
    if not path.is_file():
        raise DataError(f"--on: there is nothing at {path}; expected a folder, a manifest or a file of data settings")
    tree = read_yaml(path.read_text(encoding="utf-8"), str(path))
    if tree.problems or not isinstance(tree.value, dict):
        raise StudyError(
            tree.describe_problems() if tree.problems else f"{path}: expected a mapping, the section data of a study"
        )
    settings = tree.value["data"] if isinstance(tree.value.get("data"), dict) else tree.value
    return NewImages(name, settings, str(path), path.parent, data_set)
