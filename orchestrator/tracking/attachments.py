"""Files of a trial's run in MLflow: resolved config, log, summary of the predictions, two small figures.

They are made where records are shipped, in the background thread, when the outcome is known; a trial does not wait for
them. The figures are drawn with Pillow in 3 to 4 ms each: matplotlib would take forty times as long, and a second to
be imported.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import yaml

from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.record import Record
from orchestrator.tracking.projection import label_arm
from trainables.errors import StorageError
from trainables.evaluation.metrics import EVALUATED, MAIN_METRICS

CONFIG, LOG, PREDICTIONS, CURVES, CONFUSION, TRACEBACK = (
    "config.yaml", "log.txt", "predictions.json", "curves.png", "confusion.png", "traceback.txt",
)  # fmt: skip
#: The same text from libyaml, where PyYAML was built with it, takes a fifth of the time.
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
#: The end of a longer log is attached.
MAX_LOG_BYTES = 2**20
#: Okabe & Ito 2008, without black and yellow.
_PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 720, 420, 52, 44, 190, 44
#: More classes cannot be read in a matrix of this size.
_MAX_DRAWN_CLASSES = 20
#: More curves cannot be told apart: those that fall the lowest are drawn.
_MAX_CURVES = 18


def make_attachments(ledger: Ledger, record: Record, classes: Sequence[str], traceback: str | None) -> dict[str, bytes]:
    """Return name → content of the files of a record with a known outcome.

    Args:
        ledger: ledger that holds the record.
        record: record of a stage or trial.
        classes: names of the classes.
        traceback: traceback of a failure.

    Raises:
        StorageError: a file of the ledger cannot be read.
    """
    files = {CONFIG: _format_config(record).encode()}
    folder = ledger.folder(record.kind, record.signature)
    if folder.exists(LOG) and (log := folder.read(LOG)):
        files[LOG] = log[-MAX_LOG_BYTES:]
    if traceback is not None:
        files[TRACEBACK] = traceback.encode()
    if record.result is None or not record.result.get("evaluations"):
        return files
    title = f"{label_arm(record.config)} · r{record.config['replicate']}"
    curves = _find_curves(record.result["evaluations"])
    if curves:
        metric = EVALUATED[_find_metric(record.result["evaluations"])].title
        files[CURVES] = draw_curves(curves, f"{title}: {metric} by severity")
    matrices = {}
    for name in dict.fromkeys(each["set"] for each in record.result["evaluations"]):
        if folder.exists(f"predictions/{name}.npz"):
            matrices[name] = count_confusions(folder.read(f"predictions/{name}.npz"), f"{folder.uri}, set {name}")
    if matrices:
        files[PREDICTIONS] = json.dumps(_describe_predictions(matrices, classes), indent=1, ensure_ascii=False).encode()
    if "test" in matrices:
        files[CONFUSION] = draw_confusion(matrices["test"], _name_classes(classes, len(matrices["test"])), title)
    return files


def _format_config(record: Record) -> str:
    """Return the resolved config as YAML; what it ran on stands in comments, which are no part of it."""
    config = record.config
    lines = [f"{config['kind']} {config['signature']} of study {config['study']}: {config['name']}"]
    if record.result is not None:
        lines += [f"{key}: {value}" for key, value in record.result["environment"].items()]
    head = "".join(f"# {line}\n" for line in lines)
    text: str = yaml.dump(config["config"], Dumper=_DUMPER, sort_keys=False, allow_unicode=True)
    return head + text


def count_confusions(content: bytes, where: str) -> np.ndarray:
    """Return the confusion matrix, true × predicted class, of the unshifted images in stored predictions.

    Args:
        content: file that ``trainables.evaluation.predictions`` has written.
        where: place of the file, for the error.

    Raises:
        StorageError: it is damaged.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            labels, shifts = arrays["labels"], [str(shift) for shift in arrays["shifts"]]
            logits = arrays["logits"][shifts.index("identity/0")]
    except (ValueError, KeyError, EOFError, OSError) as error:
        raise StorageError(f"read the predictions of {where} and found them damaged: {error}") from error
    num_classes = logits.shape[1]
    pairs = labels.astype(np.int64) * num_classes + logits.argmax(axis=1)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def _describe_predictions(matrices: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict[str, Any]:
    """Return set → numbers of images, recall and precision per class, and the confusion matrix, without shift."""
    told: dict[str, Any] = {}
    for name, matrix in matrices.items():
        names, hits = _name_classes(classes, len(matrix)), matrix.diagonal()
        true, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
        told[name] = {
            "num_images": int(matrix.sum()),
            "classes": {
                title: {
                    "num_images": int(true[number]),
                    "num_predicted": int(predicted[number]),
                    "recall": float(hits[number] / true[number]) if true[number] else None,
                    "precision": float(hits[number] / predicted[number]) if predicted[number] else None,
                }
                for number, title in enumerate(names)
            },
            "confusion_true_by_predicted": matrix.tolist(),
        }
    return told


def _name_classes(classes: Sequence[str], number: int) -> list[str]:
    """Return the names of the classes; a factor may vary the data, and the plan knows the classes of one of them."""
    return list(classes) if len(classes) == number else [f"class {index}" for index in range(number)]


def _find_metric(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Return the metric of the charts: that of the task, which evaluations have."""
    known = {name for each in evaluations for name in each["metrics"]}
    return next((name for name in MAIN_METRICS.values() if name in known), next(iter(MAIN_METRICS.values())))


def _find_curves(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Return shift → severity → value of the charts' metric on the test set, the lowest end first."""
    curves: dict[str, dict[int, float]] = {}
    clean, metric = None, _find_metric(evaluations)
    for each in evaluations:
        if each["set"] != "test" or each["metrics"].get(metric) is None:
            continue
        if each["severity"] == 0:
            clean = each["metrics"][metric]
        else:
            curves.setdefault(each["shift"], {})[each["severity"]] = each["metrics"][metric]
    if clean is not None:
        curves = {name: {0: clean} | curve for name, curve in curves.items()}
    return dict(sorted(curves.items(), key=lambda item: item[1][max(item[1])]))


def draw_curves(curves: Mapping[str, Mapping[int, float]], title: str) -> bytes:
    """Return a PNG of severity curves, labelled at their ends.

    Args:
        curves: shift → severity → value in [0, 1].
        title: of the figure.
    """
    canvas = _Canvas(title)
    shown = dict(list(curves.items())[:_MAX_CURVES])
    last = max(max(curve) for curve in shown.values())
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(severity: float, value: float) -> tuple[float, float]:
        return _LEFT + width * severity / last, _TOP + height * (1 - value)

    for tenth in range(0, 11, 2):
        _, y = place(0, tenth / 10)
        canvas.draw.line([(_LEFT, y), (_LEFT + width, y)], fill="#dddddd")
        canvas.write(8, y - 8, f"{10 * tenth} %")
    for severity in range(last + 1):
        canvas.write(place(severity, 0)[0] - 3, _HEIGHT - _BOTTOM + 6, str(severity))
    canvas.write(_LEFT + width / 2 - 60, _HEIGHT - 22, "severity (0: unshifted)")
    lowest = float("inf")
    for number, (name, curve) in reversed(list(enumerate(shown.items()))):  # from the top down
        colour = _PALETTE[number % len(_PALETTE)]
        points = [place(severity, value) for severity, value in sorted(curve.items())]
        canvas.draw.line(points, fill=colour, width=2)
        for x, y in points:
            canvas.draw.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), fill=colour)
        wanted = points[-1][1] - 8
        lowest = wanted if lowest == float("inf") else max(wanted, lowest + 16)
        canvas.write(_WIDTH - _RIGHT + 8, lowest, name.replace("_", " ")[:26], colour)
    if len(curves) > len(shown):
        canvas.write(_WIDTH - _RIGHT + 8, 24, f"lowest {len(shown)} of {len(curves)}")
    return canvas.save()


def draw_confusion(matrix: np.ndarray, classes: Sequence[str], title: str) -> bytes:
    """Return a PNG of a confusion matrix: share of each true class, dark is much; counts where there is room.

    Args:
        matrix: true × predicted class, numbers of images.
        classes: names of the classes.
        title: of the figure.
    """
    canvas = _Canvas(f"{title}: test set, true class (rows) by predicted class")
    number = min(len(matrix), _MAX_DRAWN_CLASSES)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    left, size = 150, (_HEIGHT - _TOP - _BOTTOM) / number
    for row in range(number):
        canvas.write(8, _TOP + size * (row + 0.5) - 8, str(classes[row])[:20])
        canvas.write(left + size * (row + 0.5) - 8, _HEIGHT - _BOTTOM + 6, str(classes[row])[: max(2, int(size / 8))])
        for column in range(number):
            share = float(shares[row, column])
            shade = tuple(round(255 - share * (255 - dark)) for dark in (0, 84, 133))
            x, y = left + size * column, _TOP + size * row
            canvas.draw.rectangle((x, y, x + size - 1, y + size - 1), fill=shade)
            if number <= 12:
                colour = "white" if share > 0.5 else "black"
                canvas.write(x + size / 2 - 8, y + size / 2 - 8, str(matrix[row, column]), colour)
    if len(matrix) > number:
        canvas.write(_WIDTH - _RIGHT, 24, f"first {number} of {len(matrix)} classes")
    return canvas.save()


class _Canvas:
    """White image with a title."""

    def __init__(self, title: str) -> None:
        from PIL import Image, ImageDraw

        self._image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
        self.draw: Any = ImageDraw.Draw(self._image)
        self._image.paste("#222222", (8, 8), _draw_text(title[:100]))  # of this trial alone

    def write(self, x: float, y: float, text: str, colour: str = "#222222") -> None:
        """Write a line of text whose upper left corner is at (x, y)."""
        self._image.paste(colour, (round(x), round(y)), _draw_words(text))

    def save(self) -> bytes:
        """Return the PNG."""
        return _encode_png(np.asarray(self._image))


def _draw_text(text: str) -> Any:
    """Return a mask of a line of text."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(13)
    _, _, right, bottom = font.getbbox(text)
    mask = Image.new("L", (max(1, round(right) + 1), max(1, round(bottom) + 1)))
    ImageDraw.Draw(mask).text((0, 0), text, fill=255, font=font)
    return mask


#: All trials have the same words in their figures, and drawing them takes long.
_draw_words = lru_cache(maxsize=1000)(_draw_text)


def _encode_png(image: np.ndarray) -> bytes:
    """Return a PNG of an RGB image; Pillow tries all five filters on every line, which takes as long as the drawing.

    Args:
        image: height × width × 3, uint8.
    """
    height, width, _ = image.shape
    lines = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # the first byte of a line says: no filter
    lines[:, 1:] = image.reshape(height, -1)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),  # 8 bits a channel, RGB
        b"IDAT": zlib.compress(lines.data, 1),
        b"IEND": b"",
    }
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
