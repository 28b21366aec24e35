"""An exported network that gives every pixel of an image a class, and tells images unlike those of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32, Float64, UInt8
from torch import Tensor

from trainables.data.dataset import UNCOUNTED, Dataset, ImageSet
from trainables.data.segmentation.extents import find_sides
from trainables.errors import ConfigError
from trainables.evaluation.layers import HISTOGRAM, LayerRecorder
from trainables.evaluation.ood import fix_rejection
from trainables.evaluation.segmentation.annotated import restrict, tabulate_annotated
from trainables.evaluation.segmentation.calibration import CalibrationAccumulator
from trainables.evaluation.segmentation.cases import measure_cases, summarise_cases
from trainables.evaluation.segmentation.stored import load_segmented, locate_segmented
from trainables.evaluation.segmentation.windows import blend_window, place_windows
from trainables.evaluation.segmentation_ood.detectors import DETECTORS, score_sets
from trainables.exported.check import Check, count_same
from trainables.exported.form import ExportedConfig, Pixels
from trainables.exported.network import (
    ExportedNetwork,
    NewEvaluation,
    check_classes,
    check_ids,
    list_images,
    spread_rows,
)
from trainables.model_config import ModelConfig
from trainables.models.networks import Classifier
from trainables.models.segmenter import BOTTLENECK, build_segmenter
from trainables.storage.folder import Folder
from trainables.task_config import SegmentationTask

#: Pixels of the test images on which networks are compared, and of a batch of new ones: 8 images of 256 px.
_PIXELS = 1 << 19
#: Share of the pixels of test images that may have another class than the trial gave them. Our choice; on a CPU none
#: was measured to have one.
PIXEL_TOLERANCES = {"float32": 1e-4, "TF32": 1e-3, "bfloat16": 1e-2}
#: Rows and columns of logits in the self-test.
_GRID = 8


@dataclass(frozen=True)
class AboutPixels:
    """Facts about the data of an exported segmentation, and arrays of the training images, for detectors."""

    said: Pixels
    #: "histogram", "pooled/bottleneck", "spectral/bottleneck" → a row per training image.
    reference: dict[str, Tensor]


def describe_pixels(trial: Folder, data: Dataset) -> AboutPixels | None:
    """Return what is known of the pixels of a trial's data, None if its images have classes and not their pixels.

    Raises:
        StorageError: files of the trial are missing or damaged.
    """
    if not data.components:
        return None
    targets = data.splits["train"].targets
    assert targets is not None
    scores = load_segmented(trial, "val").scores
    said = Pixels(
        data_sets=data.components,
        annotated={} if tabulate_annotated(data) is None else dict(data.annotated),
        counted_share=float(np.mean([(targets[row] != UNCOUNTED).mean() for row in spread_rows(len(targets), 1000)])),
        thresholds={name: fix_rejection(scores[name][0]) for name in DETECTORS if name in scores},
    )
    layers = load_segmented(trial, "train").layers
    wanted = [name for name in layers if name.endswith(f"/{BOTTLENECK}") or name == HISTOGRAM]
    return AboutPixels(said, {name: torch.from_numpy(np.array(layers[name])) for name in wanted})


class ImageSegmenter(ExportedNetwork):
    """Module from uint8 images to a map of logits per class; windows are blended as in the study's evaluation.

    Args:
        network: network with its normalisation.
        config: content of ``config.json``.
        reference: arrays of the training images, see ``AboutPixels``.
    """

    pipeline_tag = "image-segmentation"
    purpose = "gives every pixel of {colour} images, brought to {size} px ({resize}), one of"
    usage = """\
from robustsweep import load_exported

model = load_exported("FOLDER")              # nothing is unpickled
images = model.decode_image("image.png")     # uint8, 1 x {channels} x {size} x {size}
mask = model.segment(images)                 # uint8, 1 x {size} x {size}: index into model.config.classes
foreign = model.is_foreign(images)           # whether an image is unlike those of training"""

    def __init__(
        self, network: Classifier, config: ExportedConfig, reference: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(network, config)
        assert isinstance(config.task, SegmentationTask)
        assert config.pixels is not None
        self._task, self._pixels, self._reference = config.task, config.pixels, dict(reference or {})

    def forward(self, images: UInt8[Tensor, "n c h w"]) -> Float32[Tensor, "n classes h w"]:
        """Return the logits; softmax over the second axis gives the probabilities of every pixel.

        Where data sets have classes of their own, those of all of them compete; ``segment`` takes one data set's.
        """
        normalised = self.network.normalise(images)
        size = self._task.window_size
        assert not isinstance(size, tuple), "windows of volumes, which are not exported"
        if size is None or (size >= images.shape[-2] and size >= images.shape[-1]):
            return self.network(normalised).float()
        return _predict_windows_at_once(self.network, normalised, size=size, overlap=self._task.overlap)

    @torch.inference_mode()
    def segment(self, images: UInt8[Tensor, "n c h w"], data_set: str | None = None) -> UInt8[Tensor, "n h w"]:
        """Return the class of every pixel, an index into ``config.classes``.

        Args:
            images: images of the network's size (``decode_image``).
            data_set: one of ``config.pixels.data_sets``, among whose classes pixels are told apart; None: all classes.

        Raises:
            ConfigError: there is no such data set.
        """
        return self._predict(images, data_set).argmax(1).byte()

    def _predict(self, images: Tensor, data_set: str | None) -> Tensor:
        known, logits = self._pixels.data_sets, self(images)
        if data_set is None:
            return logits
        if data_set not in known:
            raise ConfigError(
                f"found the data set {data_set!r} for a network that was made for {', '.join(map(repr, known))}; "
                "expected one of them, or none"
            )
        return self._restrict(logits, torch.full((len(images),), known.index(data_set), device=images.device))

    def _restrict(self, logits: Tensor, sources: Tensor) -> Tensor:
        """Return logits without the classes that the data set of an image does not have."""
        pixels = self._pixels
        if not pixels.annotated:
            return logits
        table = torch.zeros(len(pixels.data_sets), len(self.config.classes), dtype=torch.bool, device=logits.device)
        for row, name in enumerate(pixels.data_sets):
            table[row, [0, *pixels.annotated.get(name, range(len(self.config.classes)))]] = True
        return restrict(logits, sources, table)

    @torch.inference_mode()
    def rate_foreign(self, images: UInt8[Tensor, "n c h w"]) -> dict[str, Float64[np.ndarray, " n"]]:
        """Return detector → confidence that each image is like those of training, on the scale of its threshold."""
        recorder = LayerRecorder(self.network.backbone, [BOTTLENECK])
        with recorder.attached():
            self.network(self.network.normalise(images))
            recorder.record(images, len(images))
        sets = {
            "train": {name: values.numpy() for name, values in self._reference.items()},
            "images": {name: values[0] for name, values in recorder.collect(1).items()},
        }
        return {name: score_sets(name, sets, bottleneck=BOTTLENECK)["images"] for name in self._pixels.thresholds}

    def is_foreign(
        self, images: UInt8[Tensor, "n c h w"], detector: str = "spectral_signature"
    ) -> Bool[np.ndarray, " n"]:
        """Return whether each image is below the threshold of a detector, as 5 % of the validation images are.

        Raises:
            ConfigError: there is no such detector.
        """
        thresholds = self._pixels.thresholds
        if detector not in thresholds:
            known = ", ".join(name for name in DETECTORS if name in thresholds)
            raise ConfigError(f"is_foreign: found the detector {detector!r}; expected one of {known or 'none'}")
        return self.rate_foreign(images)[detector] < thresholds[detector]

    def list_notes(self) -> list[str]:
        """Return how images are predicted and of which pixels nothing is known, see ``ExportedNetwork.list_notes``."""
        size, task, pixels = self._task.window_size, self._task, self._pixels
        how = "Whole images, in one pass."
        if size is not None:
            how = f"Windows of {size} px that share {task.overlap:g} of their side, blended with Gaussian weights."
        notes = [how]
        if len(pixels.data_sets) > 1:
            notes.append(f"Data sets of its study: {', '.join(pixels.data_sets)}.")
        if pixels.annotated:
            notes.append("They have classes of their own: segment(images, data_set) tells pixels apart among its.")
        if pixels.counted_share < 1:
            notes.append(
                f"{1 - pixels.counted_share:.1%} of the pixels of training images count as no class (outside a field "
                "of view, borders, not annotated): what the network says of such pixels means nothing."
            )
        if pixels.thresholds:
            notes.append(
                f"Detectors of images unlike those of training: {', '.join(pixels.thresholds)}; each calls 5 % of the "
                "validation images foreign. They see whether an image differs, not whether its mask is right."
            )
        return notes

    @property
    def reference(self) -> dict[str, Tensor]:
        """Arrays of the training images with which detectors compare."""
        return self._reference

    @staticmethod
    def build_network(config: ExportedConfig) -> Classifier:
        """Return the network with random weights, see ``ExportedNetwork.build_network``."""
        assert isinstance(config.task, SegmentationTask)
        return build_segmenter(
            ModelConfig(name=config.architecture.name),
            config.task,
            num_classes=len(config.classes),
            channels=config.images.channels,
            image_size=config.images.size_px,
            dropout=config.architecture.dropout,
        )

    def choose_checked(self, test: ImageSet) -> np.ndarray:
        """Return rows of test images, fewer where they are large, see ``ExportedNetwork.choose_checked``."""
        height, width = test.images.shape[-2:]
        return spread_rows(len(test), max(1, _PIXELS // (height * width)))

    @torch.inference_mode()
    def compare_stored(self, trial: Folder, test: ImageSet, rows: np.ndarray, *, precision: str) -> Check:
        """Return a check of the class of every pixel, see ``ExportedNetwork.compare_stored``."""
        stored = load_segmented(trial, "test")
        check_ids(stored.ids, test, f"{trial.uri}/{locate_segmented('test')}")
        assert stored.predicted is not None
        logits = self(torch.from_numpy(np.array(test.images[rows])))
        found = self._restrict(logits, torch.from_numpy(stored.sources[rows])).argmax(1).byte().numpy()
        expected = stored.predicted[rows]
        return Check(
            what="model.safetensors against the masks that the trial stored",
            quantity="share of pixels of another class",
            difference=float((found != expected).mean()),
            tolerance=PIXEL_TOLERANCES[precision],
            num_images=len(rows),
            num_same_class=count_same(found, expected),
        ).require()

    @torch.inference_mode()
    def evaluate(self, sets: Sequence[ImageSet], classes: Sequence[str], *, data_set: str | None) -> NewEvaluation:
        """Return metrics of the cases, as in the study, and how foreign each is, see ``ExportedNetwork.evaluate``."""
        own, task, device = self.config.classes, self._task, self.network.mean.device
        shown = self._list_shown(data_set)
        check_classes(classes, [own[0], *(own[index] for index in shown)])
        index = np.full(256, UNCOUNTED, dtype=np.uint8)
        index[: len(classes)] = [own.index(name) for name in classes]
        calibration = CalibrationAccumulator(bins=self.config.ece_bins, band_px=task.band_px)
        predicted, targets, ratings = [], [], []
        for images in sets:
            step = max(1, _PIXELS // (images.images.shape[-2] * images.images.shape[-1]))
            for start in range(0, len(images), step):
                rows = slice(start, start + step)
                assert images.targets is not None
                batch = torch.from_numpy(np.array(images.images[rows])).to(device)
                probabilities = self._predict(batch, data_set).softmax(1)
                targets.append(index[images.targets[rows]])
                calibration.add(probabilities, torch.from_numpy(targets[-1]).to(device))
                predicted.append(probabilities.argmax(1).byte().cpu().numpy())
                ratings.append(self.rate_foreign(batch))
        cases = measure_cases(
            np.concatenate(predicted),
            np.concatenate(targets),
            classes=[(column, own[column]) for column in shown],
            spacing=np.concatenate([find_sides(images) for images in sets]),
            tolerance_mm=task.tolerance,
            calibration=calibration.finish(),
        )
        summary, thresholds = summarise_cases(cases), self._pixels.thresholds
        confidences = {name: np.concatenate([each[name] for each in ratings]) for name in thresholds}
        columns = cases.per_case()
        if len(shown) > 1:
            columns |= {f"dice/{own[place]}": cases.values["dice"][:, column] for column, place in enumerate(shown)}
        columns |= {f"{name} confidence": values for name, values in confidences.items()}
        foreign = {f"{name} foreign": (values < thresholds[name]).tolist() for name, values in confidences.items()}
        return NewEvaluation(
            summary.metrics,
            summary.counts,
            {name: float((values < thresholds[name]).mean()) for name, values in confidences.items()},
            list_images(sets) | {name: values.tolist() for name, values in columns.items()} | foreign,
        )

    def _list_shown(self, data_set: str | None) -> list[int]:
        """Return the indices of the foreground classes of a data set, or of all."""
        annotated = self._pixels.annotated.get(data_set or "")
        return [each for each in range(1, len(self.config.classes)) if annotated is None or each in annotated]

    def sample_logits(self, logits: Tensor) -> Float32[Tensor, "n values"]:
        """Return the logits of some pixels, see ``ExportedNetwork.sample_logits``."""
        rows, columns = (torch.from_numpy(spread_rows(side, _GRID)) for side in logits.shape[-2:])
        return logits[:, :, rows][..., columns].flatten(1)


def _predict_windows_at_once(
    forward: Callable[[Tensor], Tensor], images: Tensor, *, size: int, overlap: float
) -> Tensor:
    """Return what ``windows.predict_windows`` does, with all windows of a batch in one pass.

    A graph for ONNX or MLflow then holds the network once, and not once per window.
    """
    height, width = images.shape[-2:]
    tops, lefts = place_windows(height, size, overlap), place_windows(width, size, overlap)
    windows = [images[..., top : top + size, left : left + size] for top in tops for left in lefts]
    weights = blend_window((size, size), images.device)
    logits = weights * forward(torch.cat(windows)).float()
    number = images.shape[0]
    parts = [logits[index * number : (index + 1) * number] for index in range(len(windows))]
    total = _assemble(parts, tops, lefts, height, width)
    return total / _assemble([weights] * len(windows), tops, lefts, height, width)


def _assemble(parts: Sequence[Tensor], tops: Sequence[int], lefts: Sequence[int], height: int, width: int) -> Tensor:
    """Return the sum of windows at their places, row of windows by row; by padding, which all runtimes do fast."""
    size = parts[0].shape[-1]
    total: Tensor | None = None
    for row, top in enumerate(tops):
        strip: Tensor | None = None
        for column, left in enumerate(lefts):
            padded = F.pad(parts[row * len(lefts) + column], (left, width - left - size))
            strip = padded if strip is None else strip + padded
        assert strip is not None
        padded = F.pad(strip, (0, 0, top, height - top - size))
        total = padded if total is None else total + padded
    assert total is not None
    return total
