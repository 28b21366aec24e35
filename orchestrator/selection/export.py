"""Export of the chosen model: weights and config that need no study, a card, an ONNX file; all of it checked.

model.safetensors config.json   the network (``trainables.exported.folder.load_exported``)
reference.safetensors           of a segmentation: what tells foreign images
model.onnx                      the same network, on request
README.md card.html             the model card
selection.json                  the ranking, the checks, the files with their checksums; written last
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.analysis.results import Results
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.record import Record
from orchestrator.selection.card import ExportFacts, build_card
from orchestrator.selection.card_format import render_html, render_markdown
from orchestrator.selection.part_scores import score_parts
from orchestrator.selection.ranking import Selection
from trainables.config import read_trial_config
from trainables.errors import DataError, StudyError
from trainables.exported.check import TOLERANCES, Check, compare
from trainables.storage.completeness import describe_files
from trainables.storage.folder import Folder

if TYPE_CHECKING:
    from trainables.data.dataset import Dataset
    from trainables.exported.network import ExportedNetwork

WEIGHTS, CONFIG, REFERENCE, ONNX, CARD, CARD_PAGE, SELECTION = (
    "model.safetensors", "config.json", "reference.safetensors", "model.onnx", "README.md", "card.html",
    "selection.json",
)  # fmt: skip
#: File name → its content, in words.
CONTENTS = {
    WEIGHTS: "the weights, byte for byte the trial's",
    CONFIG: "architecture, images, normalisation, classes, provenance",
    REFERENCE: "signatures of the training images, with which others are compared (is_foreign)",
    ONNX: "the same network for ONNX runtimes, preprocessing included, any batch size",
    CARD: "model card",
    CARD_PAGE: "the same as a page",
    SELECTION: "ranking of the arms, numerical checks, checksums",
}


@dataclass(frozen=True)
class Exported:
    """Exported files, and the network as it was read back."""

    folder: Folder
    files: tuple[str, ...]
    checks: tuple[Check, ...]
    model: ExportedNetwork
    #: Images of the checks: uint8, n × c × h × w.
    images: np.ndarray
    #: Logits of the network read back, on a CPU.
    logits: np.ndarray


def make_slug(selection: Selection) -> str:
    """Return a folder name for the chosen arm: its label in plain characters, with a hash if characters were lost."""
    label = selection.arm.label
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", label.replace(" · ", "-")).strip("-.")[:80]
    if slug.replace("-", "") != label.replace(" · ", "").replace("-", ""):
        slug = f"{slug}-{sha256(label.encode()).hexdigest()[:8]}".strip("-")
    return f"{slug}-oracle" if selection.oracle else slug


def export_selection(
    ledger: Ledger, results: Results, selection: Selection, *, out: Folder | None, cache_dir: Path, onnx: bool = False
) -> Exported:
    """Write the chosen model with its card and checks into a folder; return the files and the network read back.

    Writing the same selection again gives the same bytes.

    Args:
        ledger: ledger of the study.
        results: results of the study.
        selection: selection made from these results.
        out: folder to write; None for ``<ledger>/selected/<arm>``.
        cache_dir: folder of decoded images on this node.
        onnx: whether to write an ONNX file as well; needs the extra ``onnx``.

    Raises:
        CheckpointError: the network does not give the logits that the trial stored; nothing is written.
        DataError: the images are missing, or differ from those of the trial.
        StudyError: the folder holds files that are not from an earlier export.
        ConfigError: an ONNX file is requested and cannot be written.
        StorageError: a file of the trial is missing or damaged, or the storage refused.
    """
    from trainables.data.load import load_dataset
    from trainables.exported.folder import build_exported, load_exported, write_exported
    from trainables.exported.onnx_graph import build_onnx, check_onnx_installed, run_onnx
    from trainables.exported.segmenter import describe_pixels

    if onnx:
        check_onnx_installed()
    record = results.records[selection.signature]
    config = read_trial_config(record.config["config"])
    data = load_dataset(config.data, cache_dir=cache_dir)
    _check_data(record, data)
    trial, folder = ledger.folder("trial", selection.signature), out or ledger.root / "selected" / make_slug(selection)
    origin, pixels = describe_origin(results, selection), describe_pixels(trial, data)
    model = build_exported(trial, config, classes=data.classes, provenance=origin, pixels=pixels)
    test, precision = data.splits["test"], find_precision(record)
    rows = model.choose_checked(test)
    images = np.array(test.images[rows])
    model.compare_stored(trial, test, rows, precision=precision)  # before anything is written
    graph = build_onnx(model) if onnx else None
    _check_free(folder)
    checks = []
    if graph is not None:
        what, expected = f"{ONNX} against {WEIGHTS}", compute_logits(model, images)
        checks.append(compare(run_onnx(graph, images), expected, what=what, tolerance=TOLERANCES["float32"]))
    for name in (SELECTION, ONNX):
        folder.remove(name)
    write_exported(trial, folder, model)
    loaded = load_exported(folder)
    checks.insert(0, loaded.compare_stored(trial, test, rows, precision=precision))
    if graph is not None:
        folder.write(ONNX, graph)
    lacking = {ONNX: graph is None, REFERENCE: not loaded.reference}
    files = tuple(name for name in CONTENTS if not lacking.get(name))
    results = _describe_own_images(results, data)
    parts = score_parts(ledger, results, selection, test.sites, data.classes)
    facts = ExportFacts(
        type(loaded),
        loaded.list_notes(),
        checks=[check.describe() for check in checks],
        files={name: CONTENTS[name] for name in files},
    )
    card = build_card(results, selection, config, parts=parts, exported=facts)
    folder.write(CARD, render_markdown(card).encode())
    folder.write(CARD_PAGE, render_html(card).encode())
    written = describe_files(folder, files[:-1])
    content = selection.as_json() | results.read_candidate(selection.signature)
    content |= {"study": ledger.study, "checks": [asdict(check) for check in checks]}
    folder.write_json(SELECTION, content | {"files": written})
    return Exported(folder, files, tuple(checks), loaded, images, compute_logits(loaded, images))


def _check_free(folder: Folder) -> None:
    """Raise StudyError if files of another origin would be overwritten: a README.md may well be the user's own."""
    taken = [name for name in CONTENTS if folder.exists(name)]
    is_ours = folder.is_intact(CONFIG) and str(folder.read_json(CONFIG).get("format", "")).startswith("robustsweep-")
    if taken and not is_ours:
        raise StudyError(
            f"--out: wanted to write to {folder.uri} and found {', '.join(taken)}, which `robustsweep select` did not "
            "write; expected an empty or new folder, or one of an earlier export"
        )


def describe_origin(results: Results, selection: Selection) -> dict[str, Any]:
    """Return the model's provenance for ``config.json``, without times."""
    record = results.records[selection.signature]
    assert record.result is not None
    versions = {name: version for name, version in results.plan["versions"].items() if version is not None}
    environment = record.result["environment"]
    return {
        "study": results.plan["study"],
        "arm": selection.arm.name,
        "replicate": selection.replicate,
        **results.read_candidate(selection.signature),
        "signature": selection.signature,
        "selected_by": {"column": selection.column, "rule": selection.rule, "oracle": selection.oracle},
        "data": {"name": results.plan["data"]["name"], "fingerprint": record.config["data_fingerprint"]},
        "git_commit": record.config["git_commit"],
        "versions": versions | {key: environment[key] for key in ("torch", "torchvision", "python")},
        "exported_with": {name: metadata.version(name) for name in ("robustsweep", "torch", "torchvision", "timm")},
    }


def _describe_own_images(results: Results, data: Dataset) -> Results:
    """Return results in which the plan counts the images of the selected trial: arms may be trained on some of them."""
    sets = data.splits | data.external
    own = {"fingerprint": data.fingerprint, "num_images": {name: len(images) for name, images in sets.items()}}
    return replace(results, plan=results.plan | {"data": results.plan["data"] | own})


def _check_data(record: Record, data: Dataset) -> None:
    if data.splits["val"].holds_volumes:
        raise StudyError(
            f"select: found volumes in {data.name}; expected images: networks of volumes (data.dimensions: 3) are not "
            "exported, their weights are in the trial's model.safetensors"
        )
    if record.config["data_fingerprint"] != data.fingerprint:
        raise DataError(
            f"compared the images here with those of the trial {record.signature} and found the fingerprint "
            f"{data.fingerprint}, expected {record.config['data_fingerprint']}: the files have changed; restore them, "
            "or run the study again"
        )


def find_precision(record: Record) -> str:
    """Return the precision in which a trial computed, a key of ``trainables.exported.check.TOLERANCES``."""
    assert record.result is not None
    environment = record.result["environment"]
    if environment["precision"] == "bfloat16":
        return "bfloat16"
    return "float32" if environment["device"] == "cpu" else "TF32"


def compute_logits(model: Any, images: np.ndarray) -> np.ndarray:
    """Return the float32 logits of uint8 images (n × c × h × w) for any module that takes such images."""
    import torch

    with torch.inference_mode():
        logits: np.ndarray = model(torch.from_numpy(images)).float().numpy()
    return logits
