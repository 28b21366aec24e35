"""Claim: after pretraining on the phantom, a linear probe beats the one on random weights and the one on PCA of pixels.

    python benchmarks/linear_probe.py                       # six encoders of each method, about ten minutes on one core
    python benchmarks/linear_probe.py --encoders 2 --epochs 2 --methods simclr byol   # quick, says nothing

An encoder is an independent pretraining from its own random weights, as a study's ``pretraining.encoders`` makes them.
A probe is a logistic regression (scikit-learn, standardised features, C by validation) on the features of the training
images, its accuracy that on test images. Each encoder is compared with its own weights before pretraining, and with the
same regression on as many principal components of the pixels as there are features; the interval is Student's over
encoders, at 95 %. A line's ratio is above 1 where both intervals are above 0.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Line
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from trainables.config import StageConfig
from trainables.data.dataset import Dataset, ImageSet
from trainables.data.load import load_dataset
from trainables.models.networks import Classifier
from trainables.pretraining.contrastive import pretrain_encoder
from trainables.pretraining.methods import embed_images
from trainables.regularisers import NoRegulariser
from trainables.seeding import derive_seed, seed_everything
from trainables.storage.folder import Folder
from trainables.trial import build_network

#: lightly's optimiser for small images: BYOL's own is for batches of thousands.
METHODS: dict[str, dict[str, Any]] = {
    "simclr": {"kind": "simclr"},
    # A queue of at most half of the 720 training images.
    "moco": {"kind": "moco", "queue_size": 256, "momentum": 0.99, "learning_rate": 0.06},
    "byol": {"kind": "byol", "optimiser": "sgd", "learning_rate": 0.06, "weight_decay": 1e-4, "warmup_epochs": 1,
             "hidden_dim": 512},
}  # fmt: skip
#: Inverse strengths of the probe's penalty, of which validation chooses.
STRENGTHS = (0.001, 0.01, 0.1, 1.0)


def make_config(method: str, options: argparse.Namespace, encoder: int) -> StageConfig:
    """Return the stage of one encoder."""
    return StageConfig.model_validate(
        {
            "data": {
                "kind": "phantom",
                "image_size": options.size,
                "num_images": options.images,
                "num_external_sites": 0,
                "lesion_radius_px": options.lesion_radius,
                "lesion_contrast": options.lesion_contrast,
            },
            "model": {"name": options.model, "input_size": options.size, "stem": "original"},
            "pretraining": {
                "kind": "contrastive",
                "epochs": options.epochs,
                "batch_size": 128,
                "views": options.views,
                "crop_scale_min": options.crop_scale_min,
                "method": METHODS[method],
            },
            "encoder": encoder,
        }
    )


@torch.no_grad()
def embed(model: Classifier, images: ImageSet) -> np.ndarray:
    """Return the features of a set."""
    model.eval()
    parts = torch.split(torch.from_numpy(np.array(images.images)), 256)
    return torch.cat([embed_images(part, model)[0] for part in parts]).numpy()


def probe(features: dict[str, np.ndarray], data: Dataset) -> float:
    """Return the test accuracy of the regression whose penalty is best on validation."""
    labels = {name: data.splits[name].labels for name in features}
    fitted = [
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500)).fit(
            features["train"], labels["train"]
        )
        for strength in STRENGTHS
    ]
    best = max(fitted, key=lambda model: model.score(features["val"], labels["val"]))
    return float(best.score(features["test"], labels["test"]))


def probe_network(model: Classifier, data: Dataset) -> float:
    """Return the accuracy of a probe on a network's features."""
    return probe({name: embed(model, data.splits[name]) for name in ("train", "val", "test")}, data)


def probe_pixels(data: Dataset, num_components: int) -> float:
    """Return the accuracy of a probe on principal components of the pixels."""
    pixels = {name: data.splits[name].images.reshape(len(data.splits[name]), -1) / 255.0 for name in data.splits}
    pca = PCA(min(num_components, len(pixels["train"])), random_state=0).fit(pixels["train"])
    return probe({name: pca.transform(pixels[name]) for name in ("train", "val", "test")}, data)


def find_interval(differences: list[float]) -> tuple[float, float, float]:
    """Return mean and ends of Student's 95 % interval."""
    values = np.array(differences)
    mean = float(values.mean())
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def measure(method: str, options: argparse.Namespace, data: Dataset) -> Line:
    """Return the line of one method."""
    before, after, seen = [], [], []
    pixels = float("nan")
    for encoder in range(options.encoders):
        config = make_config(method, options, encoder)
        seed_everything(derive_seed(config.seed, config.stream, "stage"))
        model = build_network(config.model, config.pretraining.init, data, NoRegulariser())
        pixels = probe_pixels(data, model.num_features) if encoder == 0 else pixels
        before.append(probe_network(model, data))
        with tempfile.TemporaryDirectory() as folder:
            history = pretrain_encoder(
                model,
                data.splits["train"],
                config,
                signature="bench",
                folder=Folder(Path(folder)),
                report=lambda record: None,
            )
        seen.append(sum(record["metrics"]["ssl/collapsed"] for record in history))
        after.append(probe_network(model, data))
        print(f"{method} {encoder}: {before[-1]:.3f} -> {after[-1]:.3f}, pixels {pixels:.3f}", flush=True)
    over_random = find_interval([own - other for own, other in zip(after, before, strict=True)])
    over_pixels = find_interval([own - pixels for own in after])
    facts = {
        "accuracy": float(np.mean(after)), "random_weights": float(np.mean(before)), "pixels": pixels,
        "over_random": over_random, "over_pixels": over_pixels, "encoders": options.encoders,
        "flagged_epochs": sum(seen), "epochs": options.epochs, "num_images": len(data.splits["train"]),
    }  # fmt: skip
    return Line(f"linear probe: {method}", 1.0 + min(over_random[1], over_pixels[1]), 1.0, facts)


def main() -> None:
    """Measure and print the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--encoders", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--lesion-radius", type=float, nargs=2, default=[3.0, 7.0], help="px at 64 px")
    parser.add_argument("--lesion-contrast", type=float, default=0.6)
    parser.add_argument("--crop-scale-min", type=float, default=0.5, help="smallest area of a view")
    parser.add_argument("--model", default="timm/test_resnet")
    parser.add_argument("--views", choices=("moco", "no_colour", "strong"), default="moco")
    parser.add_argument("--cache-dir", type=Path, default=Path("~/.cache/robustsweep"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_dataset(make_config("simclr", options, 0).data, cache_dir=options.cache_dir.expanduser())
    for method in options.methods:
        measure(method, options, data).emit()


if __name__ == "__main__":
    main()
