"""Areas and rates that say whether a confidence ranks the wrong predictions last; of one set, and of bootstrap weights.

Images are kept from the most confident on. Coverage is the share that is kept, risk the share of wrong predictions
among the kept. Images of equal confidence are kept together: they are one point of every curve. The same counts serve
out-of-distribution detection, with in-distribution images in the place of right predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64, Integer, Shaped

from trainables.errors import DataError
from trainables.evaluation.classification import Metrics

#: Numbers of one block of weights: 16 MiB of 32-bit integers. Larger blocks leave the cache, smaller ones cost calls.
_BLOCK = 1 << 18
#: Share of right predictions that are kept for ``failure_fpr_at_95_tpr``, as a fraction of integers: 19 of 20.
_KEPT, _OF = 19, 20


@dataclass(frozen=True)
class Counts:
    """Numbers of kept images at every threshold, from the highest on; several rows are bootstrap replicates.

    A threshold at which nothing is kept yet has zeros; one that adds no image repeats the counts before it.
    """

    kept: Int[np.ndarray, "*replicates thresholds"]
    #: Wrong predictions among them.
    errors: Int[np.ndarray, "*replicates thresholds"]

    @property
    def num_images(self) -> Int[np.ndarray, "*replicates"]:
        """Number of images."""
        return self.kept[..., -1]

    @property
    def num_errors(self) -> Int[np.ndarray, "*replicates"]:
        """Number of wrong predictions."""
        return self.errors[..., -1]


#: A number per replicate, a NumPy scalar for one set.
Value = Float64[np.ndarray, "*replicates"] | np.float64


def measure_aurc(counts: Counts) -> Value:
    """Return the area under risk over coverage, by trapezoids; below the first threshold the risk stays what it is."""
    risk = counts.errors / np.maximum(counts.kept, 1)
    added = np.diff(counts.kept, axis=-1, prepend=0)
    # Every threshold's risk counts for half of the step to it and half of the step after it; the first for all of its.
    steps = added.astype(np.float64)
    steps[..., :-1] += added[..., 1:]
    area = np.einsum("...i,...i->...", risk, steps)
    return (area + _errors_at_the_first(counts)) / (2 * counts.num_images)


def _errors_at_the_first(counts: Counts) -> Int[np.ndarray, "*replicates"]:
    """Return the wrong predictions among the first images that are kept."""
    first = (counts.kept > 0).argmax(axis=-1)
    return np.take_along_axis(counts.errors, first[..., None], axis=-1)[..., 0]


def measure_eaurc(counts: Counts) -> Value:
    """Return AURC minus that of a perfect ranking without ties, e + (1 − e)·ln(1 − e) at the error rate e.

    Trapezoids between ties, and between few images, can lie below that area: the difference is then negative.
    """
    right = 1 - counts.num_errors / counts.num_images
    return measure_aurc(counts) - (1 - right + right * np.log(np.where(right > 0, right, 1.0)))


def measure_augrc(counts: Counts) -> Value:
    """Return the area under (wrong predictions that are kept) / (all images) over coverage, by trapezoids."""
    return _pair_area(counts) / np.square(counts.num_images, dtype=np.float64)


def _pair_area(counts: Counts) -> Value:
    """Return Σ (images added at a threshold) · (mean of the errors kept before and after it)."""
    added = np.diff(counts.kept, axis=-1, prepend=0)
    twice = counts.errors.copy()
    twice[..., 1:] += counts.errors[..., :-1]
    return np.einsum("...i,...i->...", added, twice, dtype=np.float64) / 2


def measure_auroc(counts: Counts) -> Value:
    """Return the share of pairs of a right and a wrong prediction in which the right one has more confidence; ties ½.

    The pairs follow from AUGRC's area: it is E²/2 + E·(N − E)·(1 − AUROC) for E wrong predictions of N.
    """
    errors = np.asarray(counts.num_errors, dtype=np.float64)
    pairs = errors * (counts.num_images - errors)
    return 1 - (_pair_area(counts) - errors * errors / 2) / np.where(pairs > 0, pairs, np.nan)


def measure_fpr_at_95_tpr(counts: Counts) -> Value:
    """Return the share of wrong predictions kept at the highest threshold that keeps 95 % of the right ones."""
    right = counts.kept - counts.errors
    first = (_OF * right >= _KEPT * right[..., -1:]).argmax(axis=-1)
    kept = np.take_along_axis(counts.errors, first[..., None], axis=-1)[..., 0]
    return _divide(kept, counts, counts.num_errors)


def measure_fpr_of_errors(counts: Counts) -> Value:
    """Return the share of right predictions rejected at the lowest threshold that rejects 95 % of the wrong ones."""
    rejected = counts.num_errors[..., None] - _shift(counts.errors)
    last = rejected.shape[-1] - 1 - (_OF * rejected >= _KEPT * counts.num_errors[..., None])[..., ::-1].argmax(axis=-1)
    right = counts.kept - counts.errors
    lost = right[..., -1] - np.take_along_axis(_shift(right), last[..., None], axis=-1)[..., 0]
    return _divide(lost, counts, right[..., -1])


def _shift(values: Int[np.ndarray, "*replicates thresholds"]) -> Int[np.ndarray, "*replicates thresholds"]:
    """Return what was counted before each threshold."""
    before = np.zeros_like(values)
    before[..., 1:] = values[..., :-1]
    return before


def measure_ap(counts: Counts) -> Value:
    """Return the average precision of wrong predictions, ranked from the least confident: Σ (R_k − R_(k−1))·P_k."""
    errors, kept = counts.num_errors[..., None], counts.num_images[..., None]
    precision = (errors - _shift(counts.errors)) / np.maximum(kept - _shift(counts.kept), 1)
    area = np.einsum("...i,...i->...", precision, np.diff(counts.errors, axis=-1, prepend=0))
    return _divide(area, counts, counts.num_errors)


def measure_ap_of_right(counts: Counts) -> Value:
    """Return the average precision of right predictions, ranked from the most confident."""
    right = counts.kept - counts.errors
    area = np.einsum("...i,...i->...", right / np.maximum(counts.kept, 1), np.diff(right, axis=-1, prepend=0))
    return _divide(area, counts, right[..., -1])


def _divide(part: np.ndarray | np.generic, counts: Counts, total: np.ndarray) -> Value:
    """Return ``part`` / ``total``, NaN unless there are right and wrong predictions."""
    has_both = (counts.num_errors > 0) & (counts.num_errors < counts.num_images)
    return part / np.where(has_both, total, np.nan)


#: Name in ``metrics.FAILURE_METRICS`` → its function.
FAILURE: Mapping[str, Callable[[Counts], Value]] = {
    "aurc": measure_aurc,
    "eaurc": measure_eaurc,
    "augrc": measure_augrc,
    "failure_auroc": measure_auroc,
    "failure_fpr_at_95_tpr": measure_fpr_at_95_tpr,
    "failure_ap": measure_ap,
}
#: Name in ``metrics.OOD_METRICS`` → its function; in-distribution images count as right predictions.
OOD: Mapping[str, Callable[[Counts], Value]] = {
    "auroc": measure_auroc,
    "aupr_in": measure_ap_of_right,
    "aupr_out": measure_ap,
    "fpr_at_95_tpr": measure_fpr_at_95_tpr,
    "fpr_at_95_tpr_out": measure_fpr_of_errors,
}
#: Of failures, those that are defined without a wrong, or without a right, prediction.
ALWAYS_DEFINED = ("aurc", "eaurc", "augrc")


def count_errors(confidence: Shaped[np.ndarray, " n"], is_correct: Shaped[np.ndarray, " n"]) -> Counts:
    """Return the counts at every threshold of one set.

    Args:
        confidence: higher where a prediction is trusted more; infinite values are allowed.
        is_correct: whether each prediction is right, as booleans or 0 and 1.

    Raises:
        DataError: if there are no images, lengths differ, or a confidence is NaN.
    """
    wrong = _find_wrong(confidence, is_correct)
    # Sorted without an argsort, which takes twice as long: wrong predictions are found again by their confidence.
    ordered = np.sort(confidence)
    counts = np.bincount(np.searchsorted(ordered, np.sort(confidence[wrong])), minlength=len(ordered))
    errors = np.cumsum(counts[::-1])
    kept = np.arange(1, len(ordered) + 1)
    starts = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=starts[1:])
    if starts.all():
        return Counts(kept, errors)
    ends = starts[::-1]  # of a group of equal confidences, seen from the highest, its first of the sorted is the last
    return Counts(kept[ends], errors[ends])


def _find_wrong(
    confidence: Shaped[np.ndarray, "..."], is_correct: Shaped[np.ndarray, "..."]
) -> Bool[np.ndarray, "..."]:
    """Return where predictions are wrong, after a check of the arrays."""
    if confidence.ndim != 1 or confidence.shape != is_correct.shape or not len(confidence):
        raise DataError(
            f"ranked predictions by confidence and found arrays of shapes {confidence.shape} and {is_correct.shape}; "
            "expected two of one length, at least 1"
        )
    missing = int(np.isnan(confidence).sum()) if confidence.dtype.kind == "f" else 0
    if missing:
        raise DataError(
            f"ranked predictions by confidence and found {missing} of {len(confidence)} that are NaN; expected a "
            "number for every image: was the score computed from outputs that diverged?"
        )
    correct = is_correct.astype(bool)
    if is_correct.dtype != np.bool_ and not np.array_equal(correct, is_correct):
        raise DataError("ranked predictions by confidence and found is_correct other than 0 and 1; expected booleans")
    return ~correct


def compute_failure_metrics(confidence: Shaped[np.ndarray, " n"], is_correct: Shaped[np.ndarray, " n"]) -> Metrics:
    """Return the metrics of the table (``metrics.FAILURE_METRICS``) of one confidence, sorted once.

    Arguments and errors are those of ``count_errors``.
    """
    counts = count_errors(confidence, is_correct)
    reason = _find_reason(counts, "wrong", "right")
    names = FAILURE if reason is None else ALWAYS_DEFINED
    return Metrics(
        {name: float(FAILURE[name](counts)) for name in names},
        {} if reason is None else {name: reason for name in FAILURE if name not in ALWAYS_DEFINED},
    )


def _find_reason(counts: Counts, wrong: str, right: str) -> str | None:
    if counts.num_errors == 0:
        return f"none of the {counts.num_images} predictions is {wrong}"
    return f"none of the {counts.num_images} predictions is {right}" if counts.num_errors == counts.num_images else None


def compute_ood_metrics(inside: Shaped[np.ndarray, " n"], outside: Shaped[np.ndarray, " m"]) -> Metrics:
    """Return the metrics of the table (``metrics.OOD_METRICS``) between two sets of images.

    Args:
        inside: confidences of in-distribution images, higher where an image looks more like training.
        outside: confidences of the others.

    Raises:
        DataError: if a confidence is NaN, or both sets are empty.
    """
    for name, values in (("in-distribution", inside), ("other", outside)):
        if not len(values):
            return Metrics({}, dict.fromkeys(OOD, f"there are no {name} images"))
    is_inside = np.repeat([True, False], [len(inside), len(outside)])
    counts = count_errors(np.concatenate([inside, outside]), is_inside)
    return Metrics({name: float(measure(counts)) for name, measure in OOD.items()}, {})


def compute_failure_replicates(
    confidence: Shaped[np.ndarray, " n"],
    is_correct: Shaped[np.ndarray, " n"],
    weights: Integer[np.ndarray, "replicates n"],
    *,
    metrics: Collection[str] = tuple(FAILURE),
) -> dict[str, Float64[np.ndarray, " replicates"]]:
    """Return each metric of every bootstrap replicate, NaN where a replicate does not define it.

    A weight is how often a replicate drew an image: the result is that of repeated rows. Images are sorted once, not
    once per replicate. Scores that are compared take the same weights.

    Args:
        confidence: as for ``count_errors``.
        is_correct: as for ``count_errors``.
        weights: number of times that each image was drawn; a replicate without any image is NaN.
        metrics: names in ``FAILURE``; fewer take less time.
    """
    wrong = _find_wrong(confidence, is_correct)
    order = np.argsort(confidence)[::-1]
    ordered, wrong = confidence[order], wrong[order]
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    found = {name: np.empty(len(weights)) for name in metrics}
    for rows in _blocks(len(weights), len(order)):
        counts = _count_weighted(weights[rows], order, wrong, ends)
        empty = counts.num_images == 0
        with np.errstate(invalid="ignore"):  # 0/0 of a replicate without images
            for name, values in found.items():
                values[rows] = np.where(empty, np.nan, FAILURE[name](counts))
    return found


def _blocks(num_rows: int, num_columns: int) -> Iterator[slice]:
    step = max(1, _BLOCK // num_columns)
    for start in range(0, num_rows, step):
        yield slice(start, start + step)


def _count_weighted(
    weights: Integer[np.ndarray, "replicates n"],
    order: Int64[np.ndarray, " n"],
    wrong: Bool[np.ndarray, " n"],
    ends: Int64[np.ndarray, " groups"],
) -> Counts:
    drawn = np.take(weights, order, axis=1)
    kept = np.cumsum(drawn, axis=1, dtype=np.int32)
    errors = np.cumsum(drawn * wrong, axis=1, dtype=np.int32)
    return Counts(kept, errors) if len(ends) == len(order) else Counts(kept[:, ends], errors[:, ends])


def draw_weights(
    num_images: int, num_replicates: int, random: np.random.Generator
) -> Integer[np.ndarray, "replicates num_images"]:
    """Return how often each replicate of a bootstrap draws each image: as many draws as images, with replacement."""
    weights = np.empty((num_replicates, num_images), dtype=np.uint16)
    for row in weights:
        row[:] = np.bincount(random.integers(num_images, size=num_images, dtype=np.uint32), minlength=num_images)
    return weights


@dataclass(frozen=True)
class RiskCoverage:
    """Points of a risk–coverage curve for drawing, from the highest threshold to full coverage."""

    coverage: Float64[np.ndarray, " points"]
    risk: Float64[np.ndarray, " points"]


def compute_risk_coverage_curve(
    confidence: Shaped[np.ndarray, " n"], is_correct: Shaped[np.ndarray, " n"], *, max_points: int = 200
) -> RiskCoverage:
    """Return points of risk over coverage, thinned to at most ``max_points`` that are about equally far apart.

    Arguments and errors are those of ``count_errors``.
    """
    counts = count_errors(confidence, is_correct)
    wanted = np.linspace(1 / max_points, 1, max_points) * counts.num_images
    chosen = np.unique(np.minimum(np.searchsorted(counts.kept, wanted - 1e-9), len(counts.kept) - 1))
    kept = counts.kept[chosen]
    return RiskCoverage(kept / counts.num_images, counts.errors[chosen] / kept)
