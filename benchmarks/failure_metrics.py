"""Failure metrics beside fd-shifts' published algorithm, and Mahalanobis distances beside pytorch-ood. One core.

    python benchmarks/failure_metrics.py             # about a minute; 200 replicates of the loop, extrapolated
    python benchmarks/failure_metrics.py --full      # the loop runs all 10,000 replicates, two minutes more
    python benchmarks/failure_metrics.py --quick     # a tenth of the sizes
    python benchmarks/failure_metrics.py --ood DIR   # finds pytorch-ood there, where this environment has none

- *million*: AURC, e-AURC and AUGRC of 10⁶ predictions, in one call and in three. The peer is the algorithm of fd-shifts
  0.1.1 (``rc_stats``) written plainly: one Python loop over the sorted predictions per risk, then trapezoids. e-AURC
  takes the AURC of the same loop, as there.
- *replicates*: the three metrics of 10,000 bootstrap replicates of 10⁴ predictions, draws included on both sides. The
  peer resamples, sorts and loops; its time is that of ``--peer-replicates`` of them times the rest (said in the line).
- *mahalanobis*: 9 classes, 2048 features: fit and score beside pytorch-ood's detector, same features, float32.
- *memory*: NumPy's largest allocation while fitting four times as many images, over that of the number above.

Both sides are measured in CPU seconds of one thread, the least of three calls (the peer's loop: one call).
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import Line
from threadpoolctl import threadpool_limits

from trainables.evaluation.confidence import compute_augrc, compute_aurc, compute_eaurc
from trainables.evaluation.detection.mahalanobis import Chunk, fit_mahalanobis
from trainables.evaluation.detection.risk_coverage import (
    FAILURE,
    compute_failure_metrics,
    compute_failure_replicates,
    count_errors,
    draw_weights,
)

METRICS = ("aurc", "eaurc", "augrc")
#: Bars of the issue: seconds, and ratio to the loop.
MILLION_SECONDS, MILLION_RATIO = 0.25, 15.0
REPLICATES_SECONDS, REPLICATES_RATIO = 2.0, 70.0
#: Replicates of which the weights are drawn at a time: 10 MB.
DRAWN = 500


def draw_predictions(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return confidences without ties and whether predictions are right; a fifth is wrong."""
    random = np.random.default_rng(0)
    confidence = random.random(count)
    return confidence, random.random(count) < 0.6 + 0.4 * confidence


def loop_curve(confidence: np.ndarray, residuals: np.ndarray, *, is_selective: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return coverages and risks as fd-shifts does: predictions are taken away one by one, the least confident first.

    Its loop also collects thresholds and which points lower the smallest risk so far; so does this one.
    """
    order = np.argsort(confidence)
    residuals, confidence = residuals[order], confidence[order]
    total = kept = len(residuals)
    errors = sum(residuals)
    coverages, risks, thresholds, lowers = [1.0], [errors / total], [confidence[0]], [True]
    smallest = risks[0]
    for place in range(total - 1):
        kept -= 1
        errors -= residuals[place]
        if confidence[place] != confidence[place + 1]:
            risk = errors / (kept if is_selective else total)
            if risk < smallest:
                lowers.append(True)
                smallest = risk
            else:
                lowers.append(False)
            thresholds.append(confidence[place + 1])
            coverages.append(kept / total)
            risks.append(risk)
    coverages.append(0.0)
    risks.append(risks[-1] if is_selective else 0.0)
    lowers.append(False)
    np.array(thresholds)
    return np.array(coverages), np.array(risks)


def loop_metrics(confidence: np.ndarray, is_correct: np.ndarray) -> dict[str, float]:
    """Return AURC, e-AURC and AUGRC from one loop per risk."""
    residuals = 1 - is_correct.astype(np.int64)
    if any(np.isnan(confidence)) or any(np.isnan(residuals)):  # as there: Python's any
        raise ValueError("found NaN")
    selective, generalised = (
        -float(np.trapezoid(risks, coverages))
        for coverages, risks in (loop_curve(confidence, residuals, is_selective=chosen) for chosen in (True, False))
    )
    rate = float(residuals.mean())
    return {"aurc": selective, "eaurc": selective - (rate + (1 - rate) * np.log(1 - rate)), "augrc": generalised}


def least_seconds(call: Callable[[], object], repeat: int = 3) -> float:
    """Return the least CPU seconds of some calls."""
    found = []
    for _ in range(repeat):
        started = time.process_time()
        call()
        found.append(time.process_time() - started)
    return min(found)


def emit_million(count: int, bar_seconds: float) -> None:
    """Measure the metrics of one large set."""
    confidence, is_correct = draw_predictions(count)
    expected: dict[str, float] = {}
    theirs = least_seconds(lambda: expected.update(loop_metrics(confidence, is_correct)), repeat=1)
    found = compute_failure_metrics(confidence, is_correct).values
    difference = max(abs(found[name] - expected[name]) for name in METRICS)

    def ours() -> None:
        counts = count_errors(confidence, is_correct)
        for name in METRICS:
            FAILURE[name](counts)

    together = least_seconds(ours)
    apart = least_seconds(
        lambda: [compute(confidence, is_correct) for compute in (compute_aurc, compute_eaurc, compute_augrc)]
    )
    facts = {
        "cpu_seconds": together,
        "cpu_seconds_of_three_calls": apart,
        "peer_cpu_seconds": theirs,
        "largest_difference": difference,
        "num_images": count,
    }
    Line("failure_metrics.million", theirs / together, MILLION_RATIO, facts).emit()
    Line("failure_metrics.million.seconds", bar_seconds / together, 1.0, {"bar_seconds": bar_seconds, **facts}).emit()


def emit_replicates(count: int, num_replicates: int, num_peer: int, bar_seconds: float) -> None:
    """Measure a bootstrap."""
    confidence, is_correct = draw_predictions(count)

    def ours() -> None:
        random = np.random.default_rng(1)
        for _ in range(0, num_replicates, DRAWN):
            weights = draw_weights(count, min(DRAWN, num_replicates), random)
            compute_failure_replicates(confidence[None], is_correct, weights, metrics=METRICS)

    def theirs() -> None:
        random = np.random.default_rng(1)
        for _ in range(num_peer):
            rows = random.integers(count, size=count)
            loop_metrics(confidence[rows], is_correct[rows])

    seconds = least_seconds(ours)
    peer = least_seconds(theirs, repeat=1) * num_replicates / num_peer
    facts = {
        "cpu_seconds": seconds,
        "peer_cpu_seconds": peer,
        "peer_num_replicates": num_peer,
        "num_replicates": num_replicates,
        "num_images": count,
    }
    Line("failure_metrics.replicates", peer / seconds, REPLICATES_RATIO, facts).emit()
    Line("failure_metrics.replicates.seconds", bar_seconds / seconds, 1.0, {"bar_seconds": bar_seconds, **facts}).emit()


def draw_features(count: int, classes: int, size: int) -> Iterator[Chunk]:
    """Yield features in float32 in pieces of 2,048 images, as a file of them would be read."""
    centres = np.random.default_rng(2).normal(size=(classes, size)).astype(np.float32)
    random = np.random.default_rng(3)
    for start in range(0, count, 2048):
        labels = random.integers(classes, size=min(2048, count - start))
        yield centres[labels] + random.standard_normal((len(labels), size), dtype=np.float32), labels


def measure_peak(count: int, classes: int, size: int) -> float:
    """Return NumPy's largest allocation in MiB while Mahalanobis distances are fitted to features that are streamed."""
    tracemalloc.start()
    fit_mahalanobis(draw_features(count, classes, size), num_classes=classes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def emit_mahalanobis(num_train: int, num_scored: int, classes: int, size: int) -> None:
    """Measure fit and score, and memory."""
    chunks = list(draw_features(num_train, classes, size))
    features, labels = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    queries = features[:num_scored] + np.float32(0.5)
    fit = least_seconds(lambda: fit_mahalanobis([(features, labels)], num_classes=classes, relative=False))
    fitted = fit_mahalanobis([(features, labels)], num_classes=classes, relative=False, shrinkage=0.0)
    score = least_seconds(lambda: fitted.score(queries))
    facts = {
        "fit_cpu_seconds": fit,
        "score_cpu_seconds": score,
        "num_train": num_train,
        "num_scored": num_scored,
        "num_classes": classes,
        "num_features": size,
    }
    try:
        from pytorch_ood.detector import Mahalanobis
    except ImportError:
        print("pytorch-ood is not installed: pip install 'robustsweep[ood]', or --ood DIR", file=sys.stderr)
    else:
        import torch

        torch.set_num_threads(1)
        z, y, q = torch.from_numpy(features), torch.from_numpy(labels), torch.from_numpy(queries)
        peer = Mahalanobis(None)
        facts["peer_fit_cpu_seconds"] = least_seconds(lambda: peer.fit_features(z, y))
        facts["peer_score_cpu_seconds"] = least_seconds(lambda: peer.predict_features(q))
        # Its covariance is a sum and its score half the distance; the ranking is the same.
        theirs = -2 * num_train * peer.predict_features(q).double().numpy()
        facts["largest_relative_difference"] = float(np.abs(fitted.score(queries) / theirs - 1).max())
        both = facts["peer_fit_cpu_seconds"] + facts["peer_score_cpu_seconds"]
        Line("failure_metrics.mahalanobis", both / (fit + score), 1.0, facts).emit()
    once, fourfold = (measure_peak(times * num_train, classes, size) for times in (1, 4))
    memory = {"peak_mib": once, "peak_mib_of_four_times_as_many": fourfold, "num_train": num_train}
    Line("failure_metrics.mahalanobis.memory", once / fourfold, 0.98, memory).emit()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the sizes")
    parser.add_argument("--full", action="store_true", help="no extrapolation of the peer's replicates")
    parser.add_argument("--peer-replicates", type=int, default=200, help="replicates of the loop that are run")
    parser.add_argument("--ood", type=Path, metavar="DIR", help="folder that holds the package pytorch_ood")
    parser.add_argument("--only", choices=("million", "replicates", "mahalanobis"))
    asked = parser.parse_args()
    if asked.ood is not None:
        sys.path.append(str(asked.ood))
    part = 10 if asked.quick else 1
    num_replicates = 10_000 // part
    num_peer = num_replicates if asked.full else min(num_replicates, asked.peer_replicates // part)
    parts: dict[str, Callable[[], None]] = {
        "million": lambda: emit_million(10**6 // part, MILLION_SECONDS / part),
        "replicates": lambda: emit_replicates(10**4, num_replicates, num_peer, REPLICATES_SECONDS / part),
        "mahalanobis": lambda: emit_mahalanobis(20_480 // part, 10_240 // part, 9, 2048),
    }
    with threadpool_limits(1):  # NumPy's products too: one core
        for name, emit in parts.items():
            if asked.only in (None, name):
                emit()


if __name__ == "__main__":
    main()
