"""Names of the views of an evaluation, and the metrics of one class by itself.

A view is a label map (``referable/id/auroc``), a class (``class_3/id/sensitivity``), or a class of a label map
(``referable/class_1/id/sensitivity``); its headline numbers have the names that those of all classes have.
"""

from __future__ import annotations

import re

from trainables.evaluation.metric_tables.metric import Metric
from trainables.evaluation_config import KINDS

_CLASS = re.compile(r"class_\d+")
#: Name → metric of one class, numbered from 0.
CLASS_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "sensitivity", "sensitivity", "share of the class's images whose largest logit is the class's",
            higher_is_better=True, low=0.0, high=1.0, needs="an image of the class",
        ),
        Metric(
            "auroc", "one-vs-rest AUROC",
            "area under the ROC curve of f_k − log Σ_(j≠k) exp(f_j), class k against the rest; ties count ½",
            higher_is_better=True, low=0.0, high=1.0, needs="an image of the class and one of another",
            source="Hanley & McNeil 1982",
        ),
    )
}  # fmt: skip


def name_class(index: int) -> str:
    """Return the name of a class's view; classes are numbered from 0."""
    return f"class_{index}"


def split_view(name: str) -> tuple[str, str]:
    """Return the view of a headline number and its name within it: ``referable/id/auroc`` is ("referable", "id/auroc").

    The view is "" for a number of all classes as they are.
    """
    parts = name.split("/")
    number = 0
    if len(parts) > 1 and parts[0] not in KINDS and not _CLASS.fullmatch(parts[0]):
        number = 1
    if len(parts) > number + 1 and _CLASS.fullmatch(parts[number]):
        number += 1
    return "/".join(parts[:number]), "/".join(parts[number:])


def is_of_class(view: str) -> bool:
    """Return whether a view is that of one class, with the metrics of ``CLASS_METRICS``."""
    return _CLASS.fullmatch(view.rpartition("/")[2]) is not None
