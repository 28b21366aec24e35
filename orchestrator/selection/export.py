"""Export of the chosen model: weights and config that need no study, a card, an ONNX file; all of it checked.

model.safetensors config.json   the network (``trainables.models.exported.load_exported``)
model.onnx                      the same network, on request
README.md card.html             the model card
selection.json                  the ranking, the checks, the files with their checksums; written last
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.analysis.results import Results
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.record import Record
from orchestrator.selection.card import build_card
from orchestrator.selection.card_format import render_html, render_markdown
from orchestrator.selection.part_scores import score_parts
from orchestrator.selection.ranking import Selection
from trainables.config import read_trial_config
from trainables.errors import CheckpointError, DataError, StudyError
from trainables.storage.completeness import describe_files
from trainables.storage.folder import Folder

if TYPE_CHECKING:
    from trainables.data.dataset import Dataset
    from trainables.models.exported import ImageClassifier

#: Test images on which exported networks are compared, evenly spaced over the test set.
MAX_CHECKED = 64
#: How far logits may differ, relative to the largest one (at least 1), from those that the trial stored: float32 on a
#: CPU (another batch size or CPU: 1e-6 measured), TF32 and bfloat16 on a GPU (11 and 8 bits: assumed, not measured).
TOLERANCES = {"float32": 1e-4, "TF32": 1e-2, "bfloat16": 5e-2}
WEIGHTS, CONFIG, ONNX, CARD, CARD_PAGE, SELECTION = (
    "model.safetensors", "config.json", "model.onnx", "README.md", "card.html", "selection.json",
)  # fmt: skip
#: File name → its content, in words.
CONTENTS = {
    WEIGHTS: "the weights, byte for byte the trial's",
    CONFIG: "architecture, images, normalisation, classes, provenance",
    ONNX: "the same network for ONNX runtimes, preprocessing included, any batch size",
    CARD: "model card",
    CARD_PAGE: "the same as a page",
    SELECTION: "ranking of the arms, numerical checks, checksums",
}


@dataclass(frozen=True)
class Check:
    """Comparison of the logits of two networks on the same images."""

    what: str
    max_abs_difference: float
    #: The largest difference that would have been accepted.
    tolerance: float
    num_images: int
    #: Images that both networks put into the same class.
    num_same_class: int

    def describe(self) -> str:
        """Return the check as a sentence."""
        return (
            f"{self.what}: largest difference of a logit {self.max_abs_difference:.2g} (accepted: "
            f"{self.tolerance:.2g}) on {self.num_images} test images, {self.num_same_class} of them in the same class"
        )


@dataclass(frozen=True)
class Exported:
    """Exported files, and the network as it was read back."""

    folder: Folder
    files: tuple[str, ...]
    checks: tuple[Check, ...]
    model: ImageClassifier
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
    from trainables.models.exported import build_exported, load_exported, write_exported
    from trainables.models.onnx_graph import build_onnx, check_onnx_installed, run_onnx

    if onnx:
        check_onnx_installed()
    record = results.records[selection.signature]
    config = read_trial_config(record.config["config"])
    data = load_dataset(config.data, cache_dir=cache_dir)
    _check_data(record, data)
    trial, folder = ledger.folder("trial", selection.signature), out or ledger.root / "selected" / make_slug(selection)
    model = build_exported(trial, config, classes=data.classes, provenance=describe_origin(results, selection))
    images, stored = _choose_images(trial, data)
    what = "model.safetensors against the predictions that the trial stored"
    tolerance = find_tolerance(record)
    compare(compute_logits(model, images), stored, what=what, tolerance=tolerance)  # before anything is written
    graph = build_onnx(model) if onnx else None
    _check_free(folder)
    checks = [] if graph is None else [_check_onnx(run_onnx(graph, images), compute_logits(model, images))]
    for name in (SELECTION, ONNX):
        folder.remove(name)
    write_exported(trial, folder, model)
    loaded = load_exported(folder)
    logits = compute_logits(loaded, images)
    checks.insert(0, compare(logits, stored, what=what, tolerance=tolerance))
    if graph is not None:
        folder.write(ONNX, graph)
    files = tuple(name for name in CONTENTS if name != ONNX or onnx)
    parts = score_parts(ledger, results, selection.arm.name, data.splits["test"].sites, data.classes)
    said = [check.describe() for check in checks]
    card = build_card(results, selection, config, parts=parts, checks=said, files={n: CONTENTS[n] for n in files})
    folder.write(CARD, render_markdown(card).encode())
    folder.write(CARD_PAGE, render_html(card).encode())
    written = describe_files(folder, files[:-1])
    content = selection.as_json() | results.read_candidate(selection.signature)
    content |= {"study": ledger.study, "checks": [asdict(check) for check in checks]}
    folder.write_json(SELECTION, content | {"files": written})
    return Exported(folder, files, tuple(checks), loaded, images, logits)


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


def _check_data(record: Record, data: Dataset) -> None:
    if record.config["data_fingerprint"] != data.fingerprint:
        raise DataError(
            f"compared the images here with those of the trial {record.signature} and found the fingerprint "
            f"{data.fingerprint}, expected {record.config['data_fingerprint']}: the files have changed; restore them, "
            "or run the study again"
        )


def _choose_images(trial: Folder, data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return test images (uint8) and the logits that the trial stored for them."""
    from trainables.evaluation.predictions import load_predictions

    predictions, test = load_predictions(trial, "test"), data.splits["test"]
    if not np.array_equal(predictions.ids, test.ids.astype(np.str_)):
        raise DataError(
            f"compared the test images here with those in {trial.uri}/predictions/test.npz and found other ids, "
            "expected the same: restore the data, or run the study again"
        )
    rows = np.unique(np.linspace(0, len(test) - 1, min(MAX_CHECKED, len(test))).round().astype(np.int64))
    return np.array(test.images[rows]), predictions.of("identity/0")[rows]


def find_tolerance(record: Record) -> float:
    """Return the accepted difference between a CPU's logits and the trial's, relative to the largest logit."""
    assert record.result is not None
    environment = record.result["environment"]
    if environment["precision"] == "bfloat16":
        return TOLERANCES["bfloat16"]
    return TOLERANCES["float32" if environment["device"] == "cpu" else "TF32"]


def compute_logits(model: Any, images: np.ndarray) -> np.ndarray:
    """Return the float32 logits of uint8 images (n × c × h × w) for any module that takes such images."""
    import torch

    with torch.inference_mode():
        logits: np.ndarray = model(torch.from_numpy(images)).float().numpy()
    return logits


def compare(found: np.ndarray, expected: np.ndarray, *, what: str, tolerance: float) -> Check:
    """Return a check of the largest difference between two networks' logits.

    Args:
        found: logits of one network.
        expected: logits of the other network, on the same images.
        what: names of the two networks, in words.
        tolerance: accepted difference, relative to the largest logit expected (at least 1).

    Raises:
        CheckpointError: the difference is larger, or not finite.
    """
    accepted = tolerance * max(1.0, float(np.abs(expected).max()))
    difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
    if not difference <= accepted:
        raise CheckpointError(
            f"compared {what} on {len(expected)} test images: the largest difference of a logit is {difference:.3g}, "
            f"expected at most {accepted:.3g}; nothing was exported: verify the ledger with `robustsweep status "
            "--verify`, and compare the versions of torch, torchvision and timm with the report's"
        )
    same = int((found.argmax(1) == expected.argmax(1)).sum())
    return Check(what, difference, accepted, len(expected), same)


def _check_onnx(found: np.ndarray, expected: np.ndarray) -> Check:
    return compare(found, expected, what="model.onnx against model.safetensors", tolerance=TOLERANCES["float32"])
