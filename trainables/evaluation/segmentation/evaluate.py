"""Evaluation of a trained segmentation on every set and shift: what is stored per case, and metrics over cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.config import Execution
from trainables.data.dataset import Dataset, ImageSet
from trainables.data.feed import ImageFeed
from trainables.data.segmentation.extents import find_sides
from trainables.evaluation.classification import Metrics
from trainables.evaluation.detection.summary import DetectionSummary
from trainables.evaluation.layers import HISTOGRAM, LayerRecorder
from trainables.evaluation.ood import compute_intensity_histograms
from trainables.evaluation.predictions import Transform
from trainables.evaluation.robustness import (
    Evaluation,
    build_evaluation,
    choose_shifts,
    choose_validation_shifts,
    describe_rows,
    name_shift,
    open_copies,
)
from trainables.evaluation.segmentation.annotated import restrict, tabulate_annotated
from trainables.evaluation.segmentation.calibration import CalibrationAccumulator
from trainables.evaluation.segmentation.cases import (
    CASE_METRICS,
    VOLUME_METRICS,
    CaseMetrics,
    CaseSummary,
    measure_cases,
    summarise_cases,
)
from trainables.evaluation.segmentation.judged import add_detectors, judge_sets
from trainables.evaluation.segmentation.overlap import count_overlap
from trainables.evaluation.segmentation.predict import crop_padding, predict_batches, read_targets, split_batches
from trainables.evaluation.segmentation.stored import SegmentedSet, save_segmented
from trainables.evaluation.segmentation.windows import fill_up, list_windows
from trainables.evaluation.segmentation_ood.dropout import SegmentationDropout
from trainables.evaluation.segmentation_ood.pixel_scores import compute_confidences, compute_uncertainties
from trainables.evaluation_config import EvaluationConfig
from trainables.models.segmenter import BOTTLENECK, Segmenter
from trainables.ops.geometry import index_last
from trainables.shifts.bank import IDENTITY, Shift
from trainables.storage.folder import Folder
from trainables.task_config import SegmentationTask


@dataclass(frozen=True)
class _Unshifted:
    """Metrics, predictions and entropies of the unshifted images, whose pixels are stored."""

    #: None for images without targets.
    cases: CaseMetrics | None
    predicted: np.ndarray
    entropy: np.ndarray


@dataclass(frozen=True)
class _Pass:
    """Numbers per image of one set under one shift; nothing of the size of the images is kept of shifted ones."""

    #: None for images without targets, whose metrics and calibration are empty.
    summary: CaseSummary | None
    metrics: dict[str, np.ndarray]
    calibration: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    #: None for shifted images.
    unshifted: _Unshifted | None


def list_evaluated(data: Dataset) -> list[str]:
    """Return the names of the sets that are evaluated: train (for its layers), val, test, external and foreign ones."""
    return ["train", "val", "test", *data.external, *data.ood]


class SegmentationEvaluation:
    """Evaluation of one trained model; ``run`` writes a file per set and returns rows and headline numbers.

    Args:
        model: model on the device of the evaluation.
        data: data set with targets; foreign images have none.
        config: shifts and their seed, layers, bins of calibration, draws of MC dropout.
        task: windows, tolerance, band.
        execution: images per batch; location and size limit of the shifted copies.
        precision: dtype of the forward pass.
    """

    def __init__(
        self,
        model: Segmenter,
        data: Dataset,
        config: EvaluationConfig,
        task: SegmentationTask,
        *,
        execution: Execution,
        precision: torch.dtype,
    ) -> None:
        self._model, self._data, self._config, self._task = model, data, config, task
        self._execution, self._precision = execution, precision
        table = tabulate_annotated(data)
        self._annotated = None if table is None else table.to(model.mean.device)
        self._classes = [(index, name) for index, name in enumerate(data.classes) if index]
        self._dropout = None
        if config.mc_dropout > 0:
            self._dropout = SegmentationDropout(
                model, task, draws=config.mc_dropout, seed=config.shift_seed, precision=precision
            )
        self._recorder = LayerRecorder(model.backbone, list(dict.fromkeys((BOTTLENECK, *config.store_layers))))

    def run(
        self, folder: Folder, *, on_progress: Callable[[int, int], None] = lambda done, total: None
    ) -> tuple[Evaluation, DetectionSummary]:
        """Write ``cases/<set>.npz`` for every set; return rows and headline numbers, and how well scores tell cases.

        ``dataset/<name>/<metric>`` is of the unshifted test images of one of several data sets, whether it was trained
        on or not; ``validation/dataset/<name>/<metric>`` of its validation images, where it was.

        Raises:
            DivergedError: if an output is not finite.
            StorageError: if the storage refuses a write.
        """
        data, config = self._data, self._config
        shifts, of_validation = choose_shifts(data, config)[0], choose_validation_shifts(data, config)[0]
        todo: list[tuple[ImageSet, list[Shift]]] = [
            (data.splits["val"], of_validation),
            (data.splits["test"], shifts),
            *((images, [IDENTITY]) for images in (*data.external.values(), *data.ood.values())),
        ]
        total, done = 1 + sum(len(each) for _, each in todo), 0

        def count() -> None:
            nonlocal done
            done += 1
            on_progress(done, total)

        training = ImageFeed(data.splits["train"], self._model.mean.device)
        stored = {"train": self._collect(training, [IDENTITY], [])}
        count()
        measured: list[tuple[SegmentedSet, list[_Pass]]] = []
        for images, wanted in todo:
            passes: list[_Pass] = []
            feed = ImageFeed(images, self._model.mean.device)
            with open_copies(feed, data, config, self._execution) as copies:
                copies.build(wanted, batch_size=self._execution.evaluation_batch_size)
                for shift in wanted:
                    passes.append(self._predict(feed, copies.transform(shift), is_unshifted=not passes))
                    count()
            found = self._collect(feed, wanted, passes)
            stored[images.name] = found
            if images.targets is not None:
                measured.append((found, passes))
        stored, undefined = add_detectors(stored, config.store_layers)
        for found in stored.values():
            save_segmented(folder, found)
        detection = judge_sets(stored, {name: config.find_role(name) for name in (*data.external, *data.ood)})
        detection.undefined.update(undefined)
        return self._summarise(measured, (*shifts, *of_validation)), detection

    def _predict(self, feed: ImageFeed, transform: Transform, *, is_unshifted: bool) -> _Pass:
        records = is_unshifted and self._task.window_size is None
        with self._recorder.attached() if records else nullcontext():
            return self._predict_each(feed, transform, is_unshifted=is_unshifted, records=records)

    def _predict_each(self, feed: ImageFeed, transform: Transform, *, is_unshifted: bool, records: bool) -> _Pass:
        images, task = feed.images, self._task
        sources = torch.from_numpy(np.array(images.labels)).to(feed.device)
        calibration = CalibrationAccumulator(bins=self._config.ece_bins, band_px=task.band_px)
        whole = np.zeros((len(images), *images.images.shape[2:]), dtype=np.uint8)
        entropies = np.zeros_like(whole) if is_unshifted else whole[:0]
        measured: list[CaseMetrics] = []
        confidences: list[dict[str, np.ndarray]] = []
        for batch in predict_batches(
            self._model,
            feed,
            task,
            batch_size=self._execution.evaluation_batch_size,
            precision=self._precision,
            transform=transform,
        ):
            logits = batch.logits.float()
            # Of all classes: what judges a foreign image does not know which data set it is to be taken for.
            uncertainties = compute_uncertainties(logits)
            if self._dropout is not None:
                uncertainties |= self._dropout.compute_uncertainties(batch.images, sources[batch.rows], None)
            if records:  # of the passes over a batch, the first
                self._recorder.record(batch.images, len(batch.images))
            confidences.append(compute_confidences(uncertainties, logits.argmax(1)))
            if images.targets is not None:
                logits = restrict(logits, sources[batch.rows], self._annotated)
            probabilities = logits.softmax(1)
            classes = probabilities.argmax(1).byte()
            # Of a volume only its own voxels: what is stored around it is background.
            inside = (batch.rows, *(slice(0, side) for side in classes.shape[1:]))
            whole[inside] = classes.cpu().numpy()
            if is_unshifted:
                entropies[inside] = _quantise_entropy(probabilities).cpu().numpy()
            if images.targets is not None:
                targets = read_targets(images, batch.rows, feed.device)
                calibration.add(probabilities, targets)
                if images.holds_volumes:
                    measured.append(self._measure(images, batch.rows, whole[inside], targets.cpu().numpy()))
        if images.targets is not None and not images.holds_volumes:  # all together: one call for a thousand images
            measured.append(self._measure(images, slice(None), whole, np.asarray(images.targets)))
        cases = CaseMetrics.join(measured, calibration.finish()) if measured else None
        return _Pass(
            summary=None if cases is None else summarise_cases(cases),
            metrics={} if cases is None else cases.values,
            calibration={} if cases is None or cases.calibration is None else cases.calibration.per_case(),
            scores={name: np.concatenate([each[name] for each in confidences]) for name in confidences[0]},
            unshifted=_Unshifted(cases, whole, entropies) if is_unshifted else None,
        )

    def _measure(self, images: ImageSet, rows: slice, predicted: np.ndarray, targets: np.ndarray) -> CaseMetrics:
        return measure_cases(
            predicted,
            targets,
            classes=self._classes,
            spacing=find_sides(images)[rows],
            tolerance_mm=self._task.tolerance,
            metrics=VOLUME_METRICS if images.holds_volumes else CASE_METRICS,
        )

    def _collect(self, feed: ImageFeed, shifts: Sequence[Shift], passes: Sequence[_Pass]) -> SegmentedSet:
        """Return the stored arrays of a set; of training images, which have no pass, those of the layers alone."""
        images = feed.images
        _, groups = np.unique(images.groups, return_inverse=True)
        unshifted = passes[0].unshifted if passes else None
        return SegmentedSet(
            name=images.name,
            ids=images.ids,
            groups=groups,
            sources=np.array(images.labels),
            shifts=tuple(map(name_shift, shifts)),
            classes=tuple(name for _, name in self._classes),
            metrics=_stack([each.metrics for each in passes]),
            calibration=_stack([each.calibration for each in passes]),
            scores=_stack([each.scores for each in passes]),
            layers=self._record(feed, is_recorded=bool(passes) and self._task.window_size is None),
            predicted=None if unshifted is None else unshifted.predicted,
            areas=None if unshifted is None else self._measure_areas(images, unshifted.predicted),
            entropy=None if unshifted is None else unshifted.entropy,
        )

    def _measure_areas(self, images: ImageSet, predicted: np.ndarray) -> np.ndarray | None:
        if images.targets is None:
            return None
        counts = count_overlap(predicted, np.asarray(images.targets), foreground=[index for index, _ in self._classes])
        pixels = np.stack([counts.predicted, counts.target], axis=-1)
        return (pixels * find_sides(images).prod(1)[:, None, None]).astype(np.float32)

    @torch.inference_mode()
    def _record(self, feed: ImageFeed, *, is_recorded: bool) -> dict[str, np.ndarray]:
        """Return what is kept of the layers for the unshifted images, each seen as a whole.

        Args:
            feed: the images.
            is_recorded: whether they were recorded when they were predicted.
        """
        if is_recorded:
            return {name: each[0] for name, each in self._recorder.collect(1).items()}
        if feed.images.holds_volumes:
            return self._record_windows(feed)
        with self._recorder.attached():
            whole = self._task.model_copy(update={"inference": "whole"})
            for batch in predict_batches(
                self._model,
                feed,
                whole,
                batch_size=self._execution.evaluation_batch_size,
                precision=self._precision,
            ):
                self._recorder.record(batch.images, len(batch.images))
        return {name: each[0] for name, each in self._recorder.collect(1).items()}

    def _record_windows(self, feed: ImageFeed) -> dict[str, np.ndarray]:
        """Return what is kept of the layers for volumes: the mean over windows, whose size is that of all volumes.

        A signature depends on the size of the input, and a whole volume may not fit into memory. The histogram is that
        of the volume.
        """
        size, images = self._task.window_size, feed.images
        assert size is not None
        reduced = self._precision != torch.float32
        rows: list[dict[str, np.ndarray]] = []
        with self._recorder.attached(), torch.autocast(feed.device.type, self._precision, enabled=reduced):
            self._model.eval()
            for start, stored in enumerate(feed.batches(np.arange(len(feed)), split_batches(images, 1))):
                volume = crop_padding(stored, images, slice(start, start + 1))
                filled = fill_up(self._model.normalise(volume), size)
                for place in list_windows(tuple(filled.shape[2:]), size, self._task.overlap):
                    self._model(filled[index_last(place)])
                    self._recorder.record(volume[..., :1, :1, :1], 1)
                own = {name: each[0].mean(0) for name, each in self._recorder.collect(1).items()}
                rows.append(own | {HISTOGRAM: compute_intensity_histograms(volume.cpu().numpy())[0]})
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _summarise(
        self, measured: Sequence[tuple[SegmentedSet, Sequence[_Pass]]], shifts: Sequence[Shift]
    ) -> Evaluation:
        strengths = {name_shift(shift): shift.strength for shift in shifts}
        rows: list[dict[str, Any]] = []
        metrics: list[Metrics] = []
        of_components: dict[str, float] = {}
        for found, passes in measured:
            for row, each in zip(describe_rows([found], strengths), passes, strict=True):
                assert each.summary is not None
                rows.append(row | each.summary.counts)
                metrics.append(each.summary.metrics)
            unshifted = passes[0].unshifted
            if unshifted is None or unshifted.cases is None:
                continue
            prefix = "validation/" if found.name == "val" else ""
            for index, component in enumerate(self._data.components):
                own = found.sources == index
                # External sites of a data set are sets of their own.
                is_of_component = len(self._data.components) > 1 and found.name in ("val", "test", component)
                if is_of_component and own.any():
                    values = summarise_cases(unshifted.cases.take(own)).metrics.values
                    of_components |= {f"{prefix}dataset/{component}/{name}": v for name, v in values.items()}
        evaluation = build_evaluation(rows, metrics, {})
        evaluation.metrics.update(of_components)
        return evaluation


def _quantise_entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy of every pixel over log(classes), 0 to 255."""
    entropy = torch.special.entr(probabilities).sum(1) / np.log(probabilities.shape[1])
    return (255.0 * entropy.clamp(0.0, 1.0)).round().byte()


def _stack(passes: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return name → the values of all passes, in float32."""
    if not passes:
        return {}
    return {name: np.stack([each[name] for each in passes]).astype(np.float32) for name in passes[0]}
