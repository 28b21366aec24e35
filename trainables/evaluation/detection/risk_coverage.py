"""Areas and rates that say whether a confidence ranks the wrong predictions last; of one set, and of bootstrap weights.

Images are kept from the most confident on. Coverage is the share that is kept, risk the share of wrong predictions
among the kept; where predictions have a risk each, it is the mean risk of the kept (``count_risks``). Images of equal
confidence are kept together: they are one point of every curve. The same counts serve out-of-distribution detection,
with in-distribution images in the place of right predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64, Integer, Shaped

from trainables.errors import DataError
from trainables.evaluation.classification import Metrics

#: Numbers of one block of weights. Its counts and areas take 3 MiB, which a core's cache holds.
_BLOCK = 1 << 17
#: Share of right predictions that are kept for ``failure_fpr_at_95_tpr``, as a fraction of integers: 19 of 20.
_KEPT, _OF = 19, 20

#: A number per replicate, a NumPy scalar for one set.
Value = Float64[np.ndarray, "*replicates"] | np.float64


@dataclass(frozen=True)
class Counts:
    """Numbers of kept images at every threshold, from the highest on; several rows are bootstrap replicates.

    Areas are sums of trapezoids between thresholds.

    A threshold at which nothing is kept yet has zeros; one that adds no image repeats the counts before it.
    """

    kept: Int[np.ndarray, "*replicates thresholds"]
    #: Wrong predictions among them, or the sum of their risks.
    errors: Int[np.ndarray, "*replicates thresholds"] | Float64[np.ndarray, "*replicates thresholds"]

    @property
    def num_images(self) -> Int[np.ndarray, "*replicates"]:
        """Number of images."""
        return self.kept[..., -1]

    @property
    def num_errors(self) -> Int[np.ndarray, "*replicates"] | Float64[np.ndarray, "*replicates"]:
        """Number of wrong predictions, or the sum of all risks."""
        return self.errors[..., -1]

    @cached_property
    def _steps(self) -> Float64[np.ndarray, "*replicates thresholds"]:
        """Images added at a threshold and at the next: twice the weight of its height in a sum of trapezoids."""
        steps = np.empty(self.kept.shape)
        steps[..., :-1] = self.kept[..., 1:]
        steps[..., -1] = self.kept[..., -1]
        steps[..., 1:] -= self.kept[..., :-1]
        return steps

    @cached_property
    def risk_area(self) -> Value:
        """Area under the risk over the number of kept images; below the first threshold it is that threshold's."""
        area = np.einsum("...i,...i->...", self.errors / np.maximum(self.kept, 1), self._steps)
        first = (self.kept > 0).argmax(axis=-1)
        return (area + np.take_along_axis(self.errors, first[..., None], axis=-1)[..., 0]) / 2

    @cached_property
    def error_area(self) -> Value:
        """Area under the number of wrong predictions that are kept over the number of kept images."""
        return np.einsum("...i,...i->...", self.errors, self._steps) / 2


def measure_aurc(counts: Counts) -> Value:
    """Return the area under risk over coverage."""
    return counts.risk_area / counts.num_images


def measure_eaurc(counts: Counts) -> Value:
    """Return AURC minus that of a perfect ranking without ties, e + (1 − e)·ln(1 − e) at the error rate e.

    Trapezoids between ties, and between few images, can lie below that area: the difference is then negative.
    """
    right = 1 - counts.num_errors / counts.num_images
    return measure_aurc(counts) - (1 - right + right * np.log(np.where(right > 0, right, 1.0)))


def measure_augrc(counts: Counts) -> Value:
    """Return the area under (wrong predictions that are kept) / (all images) over coverage."""
    return counts.error_area / np.square(counts.num_images, dtype=np.float64)


def measure_auroc(counts: Counts) -> Value:
    """Return the share of pairs of a right and a wrong prediction in which the right one has more confidence; ties ½.

    The pairs follow from AUGRC's area: it is E²/2 + E·(N − E)·(1 − AUROC) for E wrong predictions of N.
    """
    errors = np.asarray(counts.num_errors, dtype=np.float64)
    pairs = errors * (counts.num_images - errors)
    return 1 - (counts.error_area - errors * errors / 2) / np.where(pairs > 0, pairs, np.nan)


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
    # Two sorted halves are merged, which takes less time than to sort all and to carry along which are wrong.
    low, high = np.sort(confidence[wrong]), np.sort(confidence[~wrong])
    place = np.searchsorted(high, low)
    is_wrong = np.zeros(len(confidence), dtype=bool)
    is_wrong[place + np.arange(len(low))] = True
    counts = Counts(np.arange(1, len(confidence) + 1), np.cumsum(is_wrong[::-1]))
    is_between = place < len(high)
    if not (_has_ties(low) or _has_ties(high) or (high[place[is_between]] == low[is_between]).any()):
        return counts
    ordered = np.empty_like(confidence)
    ordered[is_wrong], ordered[~is_wrong] = low, high
    # Seen from the highest, the first of equal ones in ascending order is the last.
    ends = np.append(True, ordered[1:] != ordered[:-1])[::-1]
    return Counts(counts.kept[ends], counts.errors[ends])


def count_risks(confidence: Shaped[np.ndarray, " n"], risks: Shaped[np.ndarray, " n"]) -> Counts:
    """Return the counts of one set whose predictions have a risk each, for ``measure_aurc`` and ``measure_augrc``.

    With risks of 0 and 1 they are those of ``count_errors``.

    Args:
        confidence: higher where a prediction is trusted more; infinite values are allowed.
        risks: 0 for a perfect prediction to 1 for the worst, such as 1 − Dice.

    Raises:
        DataError: if there are no images, lengths differ, a confidence is NaN, or a risk is not in [0, 1].

    Source: Traub et al. 2024, section 3, for AUGRC with any loss as the risk.
    """
    _check_confidence(confidence, risks)
    outside = int((~((risks >= 0) & (risks <= 1))).sum())
    if outside:
        raise DataError(
            f"ranked predictions by confidence and found {outside} of {len(risks)} risks that are NaN or not between 0 "
            "and 1; expected such as 1 − Dice: leave out the cases without a structure in target and prediction"
        )
    order = np.argsort(confidence)[::-1]
    ends = _find_ends(confidence[order])
    return Counts(ends + 1, np.cumsum(risks[order], dtype=np.float64)[ends])


def compute_risk_metrics(confidence: Shaped[np.ndarray, " n"], risks: Shaped[np.ndarray, " n"]) -> Metrics:
    """Return AURC and AUGRC (``metrics.FAILURE_METRICS``) of a confidence whose predictions have a risk each.

    Arguments and errors are those of ``count_risks``.
    """
    counts = count_risks(confidence, risks)
    return Metrics({name: float(FAILURE[name](counts)) for name in ("aurc", "augrc")}, {})


def _find_ends(ordered: Shaped[np.ndarray, " n"]) -> Int64[np.ndarray, " groups"]:
    """Return the place of the last of each group of equal values."""
    return np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)


def _has_ties(ordered: Shaped[np.ndarray, " n"]) -> bool:
    return bool((ordered[1:] == ordered[:-1]).any())


def _find_wrong(
    confidence: Shaped[np.ndarray, "..."], is_correct: Shaped[np.ndarray, "..."]
) -> Bool[np.ndarray, "..."]:
    """Return where predictions are wrong, after a check of the arrays."""
    _check_confidence(confidence, is_correct)
    correct = is_correct.astype(bool)
    if is_correct.dtype != np.bool_ and not np.array_equal(correct, is_correct):
        raise DataError("ranked predictions by confidence and found is_correct other than 0 and 1; expected booleans")
    return ~correct


def _check_confidence(confidence: Shaped[np.ndarray, "..."], judged: Shaped[np.ndarray, "..."]) -> None:
    """Raise DataError unless both are arrays of one length, at least 1, and no confidence is NaN."""
    if confidence.ndim != 1 or confidence.shape != judged.shape or not len(confidence):
        raise DataError(
            f"ranked predictions by confidence and found arrays of shapes {confidence.shape} and {judged.shape}; "
            "expected two of one length, at least 1"
        )
    missing = int(np.isnan(confidence).sum()) if confidence.dtype.kind == "f" else 0
    if missing:
        raise DataError(
            f"ranked predictions by confidence and found {missing} of {len(confidence)} that are NaN; expected a "
            "number for every image: was the score computed from outputs that diverged?"
        )


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


@dataclass(frozen=True)
class _Ranking:
    """One score's order of the images, from the most confident on."""

    order: Int64[np.ndarray, " n"]
    wrong: Bool[np.ndarray, " n"]
    #: Place in the order of the last image of each group of equal confidences.
    ends: Int64[np.ndarray, " groups"]

    def count(self, weights: Integer[np.ndarray, "replicates n"]) -> Counts:
        """Return the counts of every replicate."""
        drawn = np.take(weights, self.order, axis=1)
        kept = np.cumsum(drawn, axis=1, dtype=np.int32)
        errors = np.cumsum(drawn * self.wrong, axis=1, dtype=np.int32)
        has_ties = len(self.ends) < len(self.order)
        return Counts(kept[:, self.ends], errors[:, self.ends]) if has_ties else Counts(kept, errors)


def _rank(confidence: Shaped[np.ndarray, " n"], is_correct: Shaped[np.ndarray, " n"]) -> _Ranking:
    wrong = _find_wrong(confidence, is_correct)
    order = np.argsort(confidence)[::-1]
    return _Ranking(order, wrong[order], _find_ends(confidence[order]))


def compute_failure_replicates(
    confidences: Shaped[np.ndarray, "scores n"],
    is_correct: Shaped[np.ndarray, "scores n"] | Shaped[np.ndarray, " n"],
    weights: Integer[np.ndarray, "replicates n"],
    *,
    metrics: Collection[str] = tuple(FAILURE),
) -> dict[str, Float64[np.ndarray, "scores replicates"]]:
    """Return each metric of every score and bootstrap replicate, NaN where a replicate does not define it.

    A weight is how often a replicate drew an image: the result is that of repeated rows. Images are sorted once per
    score, not once per replicate. All scores have the same replicates, so that their differences are paired.

    Args:
        confidences: one row per score, each as for ``count_errors``.
        is_correct: whether each prediction is right; one row per score where scores judge different predictions.
        weights: number of times that each image was drawn; a replicate without any image is NaN.
        metrics: names in ``FAILURE``; fewer take less time.

    Raises:
        DataError: if arrays do not fit (``count_errors``).
    """
    correct = np.broadcast_to(is_correct, confidences.shape)
    rankings = [_rank(*rows) for rows in zip(confidences, correct, strict=True)]
    found = {name: np.empty((len(rankings), len(weights))) for name in metrics}
    step = max(1, _BLOCK // confidences.shape[1])
    for start in range(0, len(weights), step):
        rows = slice(start, start + step)
        for score, ranking in enumerate(rankings):
            counts = ranking.count(weights[rows])
            with np.errstate(invalid="ignore"):  # 0/0 of a replicate without images
                for name, values in found.items():
                    values[score, rows] = np.where(counts.num_images == 0, np.nan, FAILURE[name](counts))
    return found


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
    return thin_curve(count_errors(confidence, is_correct), max_points=max_points)


def thin_curve(counts: Counts, *, max_points: int = 200) -> RiskCoverage:
    """Return points of risk over coverage of one set, at most ``max_points`` that are about equally far apart."""
    wanted = np.linspace(1 / max_points, 1, max_points) * counts.num_images
    chosen = np.unique(np.minimum(np.searchsorted(counts.kept, wanted - 1e-9), len(counts.kept) - 1))
    kept = counts.kept[chosen]
    return RiskCoverage(kept / counts.num_images, counts.errors[chosen] / kept)
