"""Claim: after pretraining on the phantom, a linear probe beats the one on random weights and the one on PCA of pixels.

    python benchmarks/linear_probe.py                       # six encoders of each method, ten minutes on one core
    python benchmarks/linear_probe.py --encoders 2 --epochs 2 --methods simclr byol   # quick, says nothing

An encoder is an independent pretraining from its own random weights, as a study's ``pretraining.encoders`` makes them.
A probe is a logistic regression (scikit-learn, standardised features, C by validation) on the features of the training
images, its accuracy that on test images. Each encoder is compared with its own weights before pretraining, and with the
same regression on as many principal components of the pixels as there are features; intervals are Student's over
encoders, at 95 %. A line's ratio is above 1 where both are above 0. A second line asks for more: above the same random
weights with batch normalisation's running statistics taken from the training images, which random weights lack.

The network is one whose random features are weak: those of ``timm/test_resnet`` find the lesions about as well as
trained ones (``docs/log.md``). Network and settings of the methods were chosen on the validation images with encoders
that are not among those that are measured.
"""

from __future__ import annotations

import argparse
import copy
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
from trainables.models.batch_norm import find_norms
from trainables.models.networks import Classifier
from trainables.pretraining.collapse import describe_collapse
from trainables.pretraining.contrastive import pretrain_encoder
from trainables.pretraining.methods import embed_images
from trainables.regularisers import NoRegulariser
from trainables.seeding import derive_seed, seed_everything
from trainables.storage.folder import Folder
from trainables.trial import build_network

#: Settings for few steps (14 an epoch); what differs from the defaults was chosen as said above.
METHODS: dict[str, dict[str, Any]] = {
    "simclr": {"kind": "simclr"},
    # At the default momentum of .999 the keys follow over 70 epochs. Groups of 32 images, as on each of MoCo's GPUs.
    "moco": {"kind": "moco", "queue_size": 512, "momentum": 0.9, "temperature": 0.1, "learning_rate": 0.2,
             "warmup_epochs": 3, "batch_norm_groups": 4},
    # lightly's optimiser for small images: BYOL's own is for batches of thousands.
    "byol": {"kind": "byol", "optimiser": "sgd", "learning_rate": 0.06, "weight_decay": 1e-4, "warmup_epochs": 0,
             "hidden_dim": 512, "momentum": 0.99},
}  # fmt: skip
#: First of the measured encoders. MoCo's warm-up was changed after a first measurement, on encoders 1 to 6.
FIRST_ENCODERS = {"simclr": 1, "moco": 7, "byol": 1}
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
            "model": {
                "name": options.model,
                "stages": options.stages,
                "input_size": options.size,
                "stem": "original",
            },
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


def adapt_statistics(model: Classifier, images: ImageSet) -> Classifier:
    """Return a copy whose batch normalisation has the statistics of the images; no weight is changed."""
    adapted = copy.deepcopy(model).train()
    for layer in find_norms([adapted]):
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
    with torch.no_grad():
        for part in torch.split(torch.from_numpy(np.array(images.images)), 256):
            embed_images(part, adapted)
    return adapted


def find_interval(differences: list[float]) -> tuple[float, float, float]:
    """Return mean and ends of Student's 95 % interval."""
    values = np.array(differences)
    mean = float(values.mean())
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def measure(method: str, options: argparse.Namespace, data: Dataset) -> list[Line]:
    """Return the lines of one method."""
    drawn, adapted, after, flagged = [], [], [], 0
    pixels = float("nan")
    first = FIRST_ENCODERS[method]
    for encoder in range(first, first + options.encoders):
        config = make_config(method, options, encoder)
        seed_everything(derive_seed(config.seed, config.stream, "stage"))
        model = build_network(config.model, config.pretraining.init, data, NoRegulariser())
        pixels = probe_pixels(data, model.num_features) if encoder == first else pixels
        drawn.append(probe_network(model, data))
        adapted.append(probe_network(adapt_statistics(model, data.splits["train"]), data))
        flagged += pretrain(model, config, data)
        after.append(probe_network(model, data))
        print(
            f"{method} {encoder}: {drawn[-1]:.3f}, {adapted[-1]:.3f} -> {after[-1]:.3f}, pixels {pixels:.3f}",
            flush=True,
        )
    over_random = find_interval([own - other for own, other in zip(after, drawn, strict=True)])
    over_pixels = find_interval([own - pixels for own in after])
    over_adapted = find_interval([own - other for own, other in zip(after, adapted, strict=True)])
    facts = {
        "accuracy": float(np.mean(after)), "random_weights": float(np.mean(drawn)),
        "random_weights_with_statistics": float(np.mean(adapted)), "pixels": pixels, "over_random": over_random,
        "over_random_with_statistics": over_adapted, "over_pixels": over_pixels, "encoders": options.encoders,
        "flagged_epochs": flagged, "epochs": options.epochs, "num_images": len(data.splits["train"]),
    }  # fmt: skip
    name = f"linear_probe.{method}"
    return [
        Line(name, 1.0 + min(over_random[1], over_pixels[1]), 1.0, facts),
        Line(f"{name}.with_statistics", 1.0 + over_adapted[1], 1.0, {"over_random_with_statistics": over_adapted}),
    ]


def pretrain(model: Classifier, config: StageConfig, data: Dataset) -> int:
    """Pretrain the network in place; return the number of epochs that the collapse verdict flags."""
    with tempfile.TemporaryDirectory() as folder:
        history = pretrain_encoder(
            model,
            data.splits["train"],
            config,
            signature="bench",
            folder=Folder(Path(folder)),
            report=lambda record: None,
        )
    return len(describe_collapse(history)["epochs"])


def main() -> None:
    """Measure and print the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--encoders", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--lesion-radius", type=float, nargs=2, default=[3.0, 7.0], help="px at 64 px")
    parser.add_argument("--lesion-contrast", type=float, default=0.6)
    parser.add_argument("--crop-scale-min", type=float, default=0.5, help="smallest area of a view")
    parser.add_argument("--model", default="timm/test_efficientnet")
    parser.add_argument("--stages", type=int, default=3, help="first stages of the network that are kept")
    parser.add_argument("--views", choices=("moco", "no_colour", "strong"), default="moco")
    parser.add_argument("--cache-dir", type=Path, default=Path("~/.cache/robustsweep"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_dataset(make_config("simclr", options, 0).data, cache_dir=options.cache_dir.expanduser())
    for method in options.methods:
        for line in measure(method, options, data):
            line.emit()


if __name__ == "__main__":
    main()
