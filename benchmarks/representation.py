"""Memory and time of unbiased CKA and the Procrustes distance of two trials, from their stored features.

    python benchmarks/representation.py            # 20,000 images, 2,048 features: about a minute
    python benchmarks/representation.py --quick    # 2,000 images, 256 features

Two folders get ``predictions/test.npz`` as a trial writes it. A process of its own reads both and compares the
features; its peak resident memory counts, with the interpreter and torch in it. The bar is 1 GiB. The n × n matrices
that the formula is written with would take 2·n²·8 bytes; at 2,000 images, where they fit, both ways have to agree.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, Line, environment

GIB = 2**30
#: Images at which the formula with n × n matrices is computed as well.
NUM_CHECKED = 2000
_COMPARE = """
import json, resource, sys, time
from trainables.evaluation.predictions import load_predictions
from trainables.evaluation.representation.similarity import compare_features
from trainables.storage.folder import Folder

features = [load_predictions(Folder(path), "test").features for path in sys.argv[1:]]
started = time.process_time()
cka, procrustes = compare_features(*features)
seconds = time.process_time() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"cka": cka, "procrustes": procrustes, "cpu_seconds": seconds, "peak_rss_gib": peak / 2**30}))
"""


def draw_features(num_images: int, num_features: int) -> list[np.ndarray]:
    """Return float16 features of two networks that share part of what they see."""
    random = np.random.default_rng(0)
    shared = random.standard_normal((num_images, 32), dtype=np.float32)
    return [
        np.maximum(
            shared @ random.standard_normal((32, num_features), dtype=np.float32) / 4.0
            + random.standard_normal((num_images, num_features), dtype=np.float32),
            0.0,
        ).astype(np.float16)
        for _ in range(2)
    ]


def store(features: np.ndarray, path: Path) -> None:
    """Write ``predictions/test.npz`` of a trial with one shift and two classes."""
    from trainables.evaluation.predictions import Predictions, save_predictions
    from trainables.storage.folder import Folder

    count = len(features)
    ids, labels = np.array([f"image-{number:06d}" for number in range(count)]), np.arange(count) % 2
    logits = np.zeros((2, count, 2), np.float32)
    predictions = Predictions("test", ids, labels, ("identity/0", "blur/3"), logits, features=features)
    save_predictions(Folder(path), predictions)


def compute_by_matrices(x: np.ndarray, y: np.ndarray) -> float:
    """Return unbiased CKA by n × n matrices (Song et al. 2007, eq. 4)."""

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n = len(k)
        rows, others = k.sum(1), m.sum(1)
        whole = float((k * m).sum()) + rows.sum() * others.sum() / ((n - 1) * (n - 2))
        return (whole - 2.0 / (n - 2) * float(rows @ others)) / (n * (n - 3))

    grams = []
    for features in (x, y):
        gram = features.astype(np.float64) @ features.astype(np.float64).T
        np.fill_diagonal(gram, 0.0)
        grams.append(gram)
    k, m = grams
    return hsic(k, m) / float(np.sqrt(hsic(k, k) * hsic(m, m)))


def measure(num_images: int, num_features: int) -> Line:
    """Return the line of one size."""
    features = draw_features(num_images, num_features)
    with tempfile.TemporaryDirectory(prefix="robustsweep-bench-") as name:
        folders = [Path(name) / str(number) for number in range(2)]
        for each, folder in zip(features, folders, strict=True):
            store(each, folder)
        done = subprocess.run(
            [sys.executable, "-c", _COMPARE, *map(str, folders)],
            check=True, capture_output=True, text=True, env=environment(), cwd=ROOT,
        )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return make_line(found, features)


def make_line(found: dict[str, Any], features: list[np.ndarray]) -> Line:
    """Return the line of what the process has printed."""
    from trainables.evaluation.representation.similarity import compare_features

    first, second = (each[:NUM_CHECKED] for each in features)
    difference = abs((compare_features(first, second)[0] or 0.0) - compute_by_matrices(first, second))
    count, size = features[0].shape
    facts = {
        **found,
        "n_by_n_matrices_gib": 2 * count**2 * 8 / GIB,
        "difference_from_matrices": difference,
        "num_images_of_difference": len(first),
        "num_images": count,
        "num_features": size,
    }
    return Line("representation.cka", 1.0 / found["peak_rss_gib"], 1.0, facts)


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images, an eighth of the features")
    asked = parser.parse_args()
    measure(*((2_000, 256) if asked.quick else (20_000, 2_048))).emit()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
