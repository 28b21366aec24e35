"""Headline numbers of the views of a trial: of its label maps and of single classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainables.evaluation.labels.maps import LEFT_OUT, LabelMap, merge_logits, resolve_label_map
from trainables.evaluation.labels.per_class import compute_class_metrics
from trainables.evaluation.metric_tables.views import name_class
from trainables.evaluation.predictions import Predictions
from trainables.evaluation.robustness import Evaluation, build_evaluation, describe_rows, summarise_predictions


@dataclass
class Views:
    """Numbers of all views, and what is undefined."""

    metrics: dict[str, float] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)
    #: Name of a label map → its classes, what it merges, and what was fitted on validation for it.
    label_maps: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, view: str, evaluation: Evaluation) -> None:
        """Add the headline numbers of an evaluation under the name of a view."""
        self.metrics |= {f"{view}/{name}": value for name, value in evaluation.metrics.items()}
        self.undefined |= {f"{view}/{name}": why for name, why in evaluation.undefined.items()}


def summarise_views(
    sets: Sequence[Predictions],
    classes: Sequence[str],
    label_maps: Mapping[str, Mapping[str, str | None]],
    *,
    per_class: bool,
    ece_bins: int,
    ordinal: bool,
) -> Views:
    """Return the numbers of all views, computed from stored predictions alone: no training, no GPU.

    Args:
        sets: predictions on ``val``, ``test`` and the external sets.
        classes: classes that the model was trained on, in their order.
        label_maps: ``evaluation.label_maps``.
        per_class: whether every class, also every merged one, is a view of its own.
        ece_bins: number of bins of the calibration error.
        ordinal: whether the classes are ordered.

    Raises:
        ConfigError: a label map does not fit the classes.
    """
    views = Views()
    if per_class:
        _add_classes(views, "", sets)
    for name, of_classes in label_maps.items():
        label_map = resolve_label_map(name, of_classes, classes)
        merged = [merge_predictions(each, label_map) for each in sets]
        views.undefined |= {
            f"{label_map.name}/external/{each.name}": "every image is of a class that the label map leaves out"
            for each in merged
            if not len(each.labels)
        }
        merged = [each for each in merged if len(each.labels)]
        found = summarise_predictions(merged, strengths={}, ece_bins=ece_bins, ordinal=ordinal and label_map.is_ordered)
        views.add(label_map.name, found)
        views.label_maps[label_map.name] = {
            "classes": list(label_map.classes),
            "merged": dict(of_classes),
            "validation_fit": found.validation_fit,
        }
        if per_class:
            _add_classes(views, f"{label_map.name}/", merged)
    return views


def merge_predictions(predictions: Predictions, label_map: LabelMap) -> Predictions:
    """Return labels and logits by merged class, without the images of classes that are left out and without features.

    Labels of no class (−1) stay out as well.
    """
    labels = np.where(predictions.labels < 0, LEFT_OUT, label_map.index[predictions.labels])
    kept = labels != LEFT_OUT
    logits = merge_logits(predictions.logits[:, kept], label_map)
    return Predictions(predictions.name, predictions.ids[kept], labels[kept], predictions.shifts, logits)


def _add_classes(views: Views, prefix: str, sets: Sequence[Predictions]) -> None:
    about = describe_rows(sets, strengths={})
    found = [compute_class_metrics(logits, each.labels) for each in sets for logits in each.logits]
    for index in range(len(found[0])):
        views.add(f"{prefix}{name_class(index)}", build_evaluation(about, [each[index] for each in found], {}))
