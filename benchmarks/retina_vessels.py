"""Claim: networks of configs/retina_vessels.yaml segment as well as a bare smp loop, and far better than no network.

    python benchmarks/retina_vessels.py --drive …/drive --chase …/chase_db1            # about ten minutes on one core
    python benchmarks/retina_vessels.py --drive … --chase … --epochs 1 --seeds 1       # quick, says nothing

Dice on the test images of each camera, mean over images: of a logistic regression on the colours of a pixel; of
Frangi's filter on the green channel; of the study's U-Net from ImageNet weights, trained on that camera by a trial, and
by the plainest loop with segmentation-models-pytorch for as many steps, with the same flips and schedule. The
thresholds of the first two are the best on the training images. A line's ratio is (ours + .02) / bare, and 0 where a
baseline without a network is better.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
import yaml
from common import ROOT, Line
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from trainables.config import Execution, TrialConfig
from trainables.data.dataset import UNCOUNTED, Dataset, ImageSet
from trainables.data.load import load_dataset
from trainables.models.networks import Classifier
from trainables.storage.folder import Folder
from trainables.training.acceleration import default_choice
from trainables.trial import build_initial_model, prepare_process, run_trial

#: Largest lead of the bare loop that still counts as equal.
TOLERANCE = 0.02
#: Widths of vessels, as standard deviations in px.
SCALES = (0.7, 1, 1.5, 2, 3)


def make_config(options: argparse.Namespace, camera: str, seed: int) -> TrialConfig:
    """Return the study's trial on one camera, from ImageNet weights, tested without shifts."""
    study = yaml.safe_load((ROOT / "configs" / "retina_vessels.yaml").read_text())
    data = study["data"] | {"train_on": [camera]}
    for name, path in (("drive", options.drive), ("chase", options.chase)):
        data["datasets"][name]["path"] = str(path)
    training = study["training"] | ({} if options.epochs is None else {"epochs": options.epochs})
    sections = {name: study[name] for name in ("task", "model", "augmentation")}
    return TrialConfig.model_validate(
        {
            **sections,
            "data": data,
            "training": training,
            "pretraining": {"kind": "imagenet"},
            "evaluation": {"shifts": []},
            "replicate": seed,
        }
    )


def score(predicted: np.ndarray, images: ImageSet) -> float:
    """Return the mean Dice over images of a mask of vessels."""
    counted, true = images.targets != UNCOUNTED, images.targets == 1
    found = predicted & counted
    axes = tuple(range(1, predicted.ndim))
    return float(np.mean(2 * (found & true).sum(axes) / (found.sum(axes) + true.sum(axes))))


def choose_threshold(values: Float[np.ndarray, "n h w"], images: ImageSet) -> float:
    """Return the threshold with the best Dice."""
    candidates = np.quantile(values, np.linspace(0.5, 0.995, 60))
    return float(max(candidates, key=lambda threshold: score(values > threshold, images)))


def score_regression(data: Dataset) -> float:
    """Return the Dice of a logistic regression on the colours of each pixel."""
    train, test = data.splits["train"], data.splits["test"]
    pixels = {each.name: np.moveaxis(np.asarray(each.images), 1, -1) / 255.0 for each in (train, test)}
    counted = train.targets != UNCOUNTED
    chosen = np.random.default_rng(0).permutation(int(counted.sum()))[:200_000]
    model = LogisticRegression().fit(pixels["train"][counted][chosen], train.targets[counted][chosen])
    values = {
        name: model.decision_function(each.reshape(-1, each.shape[-1])).reshape(each.shape[:3])
        for name, each in pixels.items()
    }
    return score(values["test"] > choose_threshold(values["train"], train), test)


def score_frangi(data: Dataset) -> float:
    """Return the Dice of Frangi's vesselness of dark ridges in the green channel."""
    from skimage.filters import frangi

    values = {
        name: np.stack(
            [frangi(image[1] / 255.0, sigmas=(0.7, 1, 1.5, 2, 3), black_ridges=True) for image in each.images]
        )
        for name, each in data.splits.items()
        if name != "val"
    }
    return score(values["test"] > choose_threshold(values["train"], data.splits["train"]), data.splits["test"])


def score_ours(config: TrialConfig, execution: Execution) -> float:
    """Return the Dice of a trial."""
    with tempfile.TemporaryDirectory(prefix="robustsweep-bench-") as folder:
        result = run_trial(config, signature="bench", folder=Folder(folder), execution=execution)
    return float(result["metrics"]["id/dice"])


def score_bare(config: TrialConfig, data: Dataset) -> float:
    """Return the Dice of the same network, trained as one does in a notebook."""
    task: Any = config.task
    torch.manual_seed(config.replicate)
    model = build_initial_model(config, data, encoder=None)
    model = default_choice(config.model, model, torch.float32, torch.device("cpu")).place(model)
    train = data.splits["train"]
    images, masks = torch.from_numpy(np.array(train.images)), torch.from_numpy(np.array(train.targets)).long()
    overlap = smp.losses.DiceLoss("multiclass", classes=[1], ignore_index=UNCOUNTED)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.training.learning_rate, weight_decay=0.0)
    batch_size, size = config.training.batch_size, task.patch_size
    steps = config.training.epochs * (task.patches_per_epoch // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(images), (batch_size,)).tolist()
        corners = torch.randint(images.shape[-1] - size + 1, (batch_size, 2)).tolist()
        patches, wanted = [], []
        for row, (top, left) in zip(rows, corners, strict=True):
            flips = [axis for axis in (-1, -2) if torch.rand(()) < 0.5]
            patches.append(images[row, :, top : top + size, left : left + size].flip(flips))
            wanted.append(masks[row, top : top + size, left : left + size].flip(flips))
        logits = model((torch.stack(patches).float() / 255.0 - model.mean) / model.std)
        loss = overlap(logits, torch.stack(wanted))
        loss = loss + F.cross_entropy(logits, torch.stack(wanted), ignore_index=UNCOUNTED)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return score(predict_bare(model, data.splits["test"]), data.splits["test"])


@torch.inference_mode()
def predict_bare(model: Classifier, images: ImageSet) -> np.ndarray:
    """Return the mask of whole images."""
    model.eval()
    pixels = torch.from_numpy(np.array(images.images)).split(4)
    return np.concatenate(
        [model((each.float() / 255.0 - model.mean) / model.std).argmax(1).numpy() == 1 for each in pixels]
    )


def main() -> None:
    """Print a line per camera."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drive", type=Path, required=True)
    parser.add_argument("--chase", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=None, help="Default: the study's.")
    options = parser.parse_args()
    execution = Execution(device="cpu", num_threads=1)
    prepare_process(execution)
    for camera in ("drive", "chase"):
        configs = [make_config(options, camera, seed) for seed in range(options.seeds)]
        data = load_dataset(configs[0].data, cache_dir=execution.cache_dir.expanduser())
        baselines = {"logistic_regression": score_regression(data), "frangi": score_frangi(data)}
        bare = [score_bare(config, data) for config in configs]
        ours = [score_ours(config, execution) for config in configs]
        facts = {
            **baselines,
            "ours": float(np.mean(ours)),
            "bare": float(np.mean(bare)),
            "ours_of_seeds": [round(each, 4) for each in ours],
            "bare_of_seeds": [round(each, 4) for each in bare],
            "epochs": configs[0].training.epochs,
        }
        is_above = np.mean(ours) > max(baselines.values())
        ratio = (np.mean(ours) + TOLERANCE) / np.mean(bare) if is_above else 0.0
        Line(f"segmentation.retina.{camera}", float(ratio), 1.0, facts).emit()


if __name__ == "__main__":
    main()
