"""Where one trained model looks: attributions of test images with lesions, scored against their masks."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, Shaped, UInt8

from trainables.config import Execution, TrialConfig
from trainables.data.dataset import Dataset, ImageSet
from trainables.data.sources.lesion_masks import TestMasks, load_test_masks
from trainables.errors import StorageError
from trainables.evaluation.attribution.area_effect import compute_large_small_ratio
from trainables.evaluation.attribution.components import Components, find_components
from trainables.evaluation.attribution.compute import compute_attribution
from trainables.evaluation.attribution.mask_metrics import (
    PER_IMAGE,
    Sign,
    average_scores,
    build_centre_prior,
    compute_concentration,
    name_bin,
    share_by_component,
    take_relevance,
)
from trainables.evaluation.attribution.methods import ATTRIBUTION_METHODS
from trainables.evaluation.attribution.table import (
    ADJUSTED_RATIO,
    CENTRE_PRIOR,
    RANDOMISED,
    WITHOUT_RELEVANCE,
    name_attribution,
)
from trainables.evaluation.predictions import check_sums
from trainables.evaluation_config import AttributionConfig
from trainables.model_config import ModelConfig
from trainables.models.networks import Classifier
from trainables.pretraining_config import PretrainingConfig, ScratchPretraining
from trainables.regularisers import RegulariserConfig
from trainables.seeding import derive_seed, hash_ids, seed_everything
from trainables.storage.completeness import ATTRIBUTION
from trainables.storage.folder import Folder

#: Training images that expected gradients compare with: an assumption; their 64 draws see each about twice.
NUM_REFERENCES = 32
#: Methods that need no backward pass, which takes about twice the time of a forward pass.
_WITHOUT_GRADIENT = {"occlusion"}


@dataclass(frozen=True)
class Scored:
    """Scores of the relevance maps of one method, or of a baseline."""

    #: Name in ``PER_IMAGE``, or ``WITHOUT_RELEVANCE`` → value per image.
    per_image: dict[str, Float64[np.ndarray, " n"]]
    #: Share of its image's relevance that each lesion component holds.
    shares: Float64[np.ndarray, " components"]


@dataclass
class AttributionSummary:
    """Attribution metrics of one trial."""

    #: Name → headline number.
    metrics: dict[str, float] = field(default_factory=dict)
    #: Name of a headline number → why it is undefined.
    undefined: dict[str, str] = field(default_factory=dict)


def count_passes(asked: AttributionConfig | None) -> int:
    """Return how many passes of an image in evaluation take as long as the attributions of one trial, at most."""
    if asked is None:
        return 0
    costs = (ATTRIBUTION_METHODS[name].num_passes * (1 if name in _WITHOUT_GRADIENT else 3) for name in asked.methods)
    return 2 * asked.images * sum(costs)


def choose_scored(test: ImageSet, masks: TestMasks, count: int) -> Int64[np.ndarray, " n"]:
    """Return the rows of the test images that are scored: of those with lesions the first by a hash of their ids.

    So they are a random sample, the same for every trial, and of a larger sample a smaller one is part.
    """
    rows = np.flatnonzero(masks.masks.any(axis=(1, 2)))
    return rows[np.argsort(hash_ids(test.ids[rows]), kind="stable")[:count]]


def score_maps(attribution: Float32[np.ndarray, "n h w"], components: Components, sign: Sign) -> Scored:
    """Return the scores of maps against the lesions of their images.

    Args:
        attribution: signed attributions.
        components: lesions of the same images.
        sign: what counts as relevance.
    """
    (relevance, is_empty), masks = take_relevance(attribution, sign), components.labels > 0
    per_image = {name: function(relevance, masks) for name, function in PER_IMAGE.items()}
    per_image[WITHOUT_RELEVANCE] = is_empty.astype(np.float64)
    return Scored(per_image, share_by_component(relevance, components))


def summarise_scored(scored: Scored, components: Components) -> tuple[dict[str, float], str | None]:
    """Return metric → value of one method, and why the adjusted ratio of large to small lesions is undefined."""
    found = average_scores(scored.per_image)
    found |= {name_bin(name): value for name, value in compute_concentration(scored.shares, components).items()}
    ratio = compute_large_small_ratio(scored.shares, components)
    if isinstance(ratio, str):
        return found, ratio
    return found | {ADJUSTED_RATIO: ratio}, None


def evaluate_attribution(
    model: Classifier,
    build_network: Callable[[ModelConfig, PretrainingConfig, Dataset, RegulariserConfig], Classifier],
    data: Dataset,
    config: TrialConfig,
    *,
    folder: Folder,
    execution: Execution,
) -> AttributionSummary:
    """Return the attribution metrics of a trained model and of its baselines; write ``attribution.npz``.

    Nothing is computed or written without ``config.evaluation.attribution``: the summary is empty.

    What is explained is the logit of the true class. Baselines are the same method on a network with random weights
    (Adebayo et al. 2018), and a Gaussian around the middle of the image, which has seen nothing at all.

    Args:
        model: trained model on the device of the evaluation.
        build_network: function that builds the network of a trial, here with random weights.
        data: data set; test images are explained, and some training images are what expected gradients compare with.
        config: config of the trial; seeds never depend on the arm.
        folder: folder of the trial.
        execution: cache of the masks.

    Raises:
        ConfigError: the data have no masks, or a method does not fit the network.
        DivergedError: an attribution is not finite.
        StorageError: the storage refuses the write.
    """
    asked = config.evaluation.attribution
    if asked is None:
        return AttributionSummary()
    test, train = data.splits["test"], data.splits["train"]
    masks = load_test_masks(data, config.data, cache_dir=execution.cache_dir.expanduser())
    rows = choose_scored(test, masks, asked.images)
    components = find_components(np.asarray(masks.masks[rows]) > 0)
    images, targets = torch.from_numpy(np.array(test.images[rows])), torch.from_numpy(test.labels[rows])
    chosen = np.sort(np.argsort(hash_ids(train.ids), kind="stable")[:NUM_REFERENCES])
    references = torch.from_numpy(np.array(train.images[chosen]))

    def explain(network: Classifier, method: str) -> Float32[np.ndarray, "n h w"]:
        seed = derive_seed(config.seed, config.replicate, "attribution")
        size = config.training.batch_size  # gradients of that many fit into memory; evaluation takes larger batches
        return compute_attribution(
            network, images, targets, method=method, references=references, batch_size=size, seed=seed
        ).numpy()

    kept = _Kept(rows, test.ids[rows], components, asked.cases)
    summary = AttributionSummary()
    seed_everything(derive_seed(config.seed, config.replicate, "randomised"))
    randomised = build_network(config.model, ScratchPretraining(), data, config.regulariser).to(model.mean.device)
    for method in asked.methods:
        for prefix, network in (("", model), (RANDOMISED, randomised)):
            attribution = explain(network, method)
            scored = score_maps(attribution, components, asked.relevance)
            _add(summary, method, prefix, scored, components)
            kept.add(f"{method}/{prefix}", scored, attribution if not prefix else None, asked.relevance)
    prior = np.broadcast_to(build_centre_prior(*components.labels.shape[1:]), components.labels.shape)
    scored = score_maps(prior, components, "positive")
    _add(summary, CENTRE_PRIOR, "", scored, components)
    kept.add(f"{CENTRE_PRIOR}/", scored, None, asked.relevance)
    kept.save(folder)
    return summary


def _add(summary: AttributionSummary, method: str, prefix: str, scored: Scored, components: Components) -> None:
    metrics, problem = summarise_scored(scored, components)
    summary.metrics |= {name_attribution(method, prefix + name): value for name, value in metrics.items()}
    if problem is not None:
        summary.undefined[name_attribution(method, prefix + ADJUSTED_RATIO)] = problem


class _Kept:
    """Arrays of ``attribution.npz``.

    ``rows`` and ``ids`` of the scored images; ``components/image`` (index among them), ``…/area_px``, ``…/elongation``
    and ``…/irregularity``; per method or baseline ``scores/<method>/<prefix><metric>`` (per image) and
    ``shares/<method>/<prefix>`` (per component); ``maps/<method>`` (first cases, relevance over its maximum × 255).
    """

    def __init__(
        self, rows: Int64[np.ndarray, " n"], ids: Shaped[np.ndarray, " n"], components: Components, cases: int
    ) -> None:
        self._cases = cases
        self.arrays: dict[str, np.ndarray] = {
            "rows": rows,
            "ids": ids.astype(np.str_),
            "masks": (components.labels[:cases] > 0).astype(np.uint8),
            "components/image": components.image.astype(np.int32),
            "components/area_px": components.area_px.astype(np.int32),
            "components/elongation": components.elongation.astype(np.float32),
            "components/irregularity": components.irregularity.astype(np.float32),
        }

    def add(self, name: str, scored: Scored, attribution: Float32[np.ndarray, "n h w"] | None, sign: Sign) -> None:
        """Keep the scores of a method, and the first maps if it is that of the trained model."""
        self.arrays |= {f"scores/{name}{each}": values for each, values in scored.per_image.items()}
        self.arrays[f"shares/{name}"] = scored.shares.astype(np.float32)
        if attribution is not None:
            relevance, is_empty = take_relevance(attribution[: self._cases], sign)
            relevance[is_empty] = 0  # drawn as what it is
            self.arrays[f"maps/{name.rstrip('/')}"] = _quantise(relevance)

    def save(self, folder: Folder) -> None:
        """Write ``attribution.npz``."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **self.arrays)  # type: ignore[arg-type]
        folder.write(ATTRIBUTION, buffer.getvalue())


def _quantise(relevance: Float32[np.ndarray, "n h w"]) -> UInt8[np.ndarray, "n h w"]:
    if not len(relevance):
        return relevance.astype(np.uint8)
    largest = relevance.max(axis=(1, 2), keepdims=True)
    return np.rint(255 * relevance / np.where(largest > 0, largest, 1)).astype(np.uint8)


def read_attribution(folder: Folder) -> dict[str, np.ndarray]:
    """Return the arrays of ``attribution.npz``, after a check of every byte.

    Raises:
        StorageError: it is missing or damaged.
    """
    file = io.BytesIO(folder.read(ATTRIBUTION))
    try:
        check_sums(file)
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise StorageError(f"{folder.uri}/{ATTRIBUTION} is damaged: {error}") from error
