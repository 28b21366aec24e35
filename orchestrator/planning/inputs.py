"""Inputs of planning: data sets, validated and prepared here, and whether pretrained weights are available."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.planning.works import weights_of
from trainables.config import TrialConfig
from trainables.data.dataset import BadImage, Dataset, ImageSet
from trainables.data_config import DataConfig, UnlabelledFolderData
from trainables.errors import ConfigError, WeightsUnavailableError
from trainables.evaluation_config import EvaluationConfig
from trainables.frozen import canonical_json
from trainables.pretraining_config import (
    ImageNetPretraining,
    PretrainingConfig,
    TrainedStep,
    WeightsPretraining,
)


class Inputs:
    """Data sets and weights of a study (``plan.Facts``), each looked up once.

    Args:
        cache_dir: folder of the decoded images on this node.
        verify: whether to read every byte of the data instead of trusting sizes and times.
    """

    def __init__(self, cache_dir: Path, *, verify: bool = False) -> None:
        self._cache_dir = cache_dir.expanduser()
        self._verify = verify
        self._datasets: dict[str, Dataset] = {}
        self._sources: dict[str, Dataset] = {}
        self._digests: dict[int, tuple[ImageSet, list[bytes]]] = {}
        self._missing: dict[str, str | None] = {}
        self._masks: dict[str, str | None] = {}

    def dataset(self, config: DataConfig) -> Dataset:
        """Return the data set of a config, decoded and checked. The images stay on disk.

        Raises:
            DataError: if an image, label or split is unusable; the message names all problems.
        """
        key = config.model_dump_json()
        if key not in self._datasets:
            self._datasets[key] = self._load(config)
        return self._datasets[key]

    def _load(self, config: DataConfig | UnlabelledFolderData) -> Dataset:
        from trainables.data.load import load_dataset

        return load_dataset(config, cache_dir=self._cache_dir, verify=self._verify)

    def with_foreign(self, config: TrialConfig) -> Dataset:
        """Return the data set of a trial with the images of the other sources that it is tested on.

        Raises:
            RobustSweepError: a source cannot be loaded, or has a name that is not allowed.
        """
        from trainables.data.foreign import with_foreign_sets

        return with_foreign_sets(
            self.dataset(config.data), config.data, config.evaluation, cache_dir=self._cache_dir, verify=self._verify
        )

    @property
    def datasets(self) -> list[Dataset]:
        """All data sets loaded so far."""
        return list(self._datasets.values())

    @property
    def quarantined(self) -> list[BadImage]:
        """Images set aside in any data set, each once."""
        return list(dict.fromkeys(bad for dataset in self.datasets for bad in dataset.quarantined))

    def fingerprint(self, config: TrialConfig) -> str:
        """Return the fingerprint of the trial's data."""
        return self.dataset(config.data).fingerprint

    def missing_weights(self, config: TrialConfig) -> str | None:
        """Return the reason why published weights are unavailable, None if they are available or not needed.

        Raises:
            WeightsUnavailableError: if they are unavailable and ``on_unavailable`` is ``error``.
        """
        weights = weights_of(config)
        if weights is None:
            return None
        key = canonical_json([config.model.name, weights.model_dump(mode="json")])
        if key not in self._missing:
            from trainables.pretraining.imagenet import find_missing_weights

            self._missing[key] = find_missing_weights(config.model.name, weights)
        reason = self._missing[key]
        if reason is not None and weights.on_unavailable == "error":
            raise WeightsUnavailableError(
                f"{reason}; put the weights into the cache, name a file with pretraining.file, "
                "or set pretraining.on_unavailable: skip to leave these arms out"
            )
        return reason

    def resolve(self, config: TrialConfig) -> TrialConfig:
        """Return the config with the digests of its weights file, of the images of other sources and of lesion masks.

        So content and not path decides the signature. The file is that of the chain's first step or of an installed
        package; weights from a hub have none.

        Raises:
            ConfigError: if the config names another digest, or lesions are asked for and the data have no masks.
            DataError: if masks are unusable.
        """
        if config.evaluation.foreign:
            config = config.model_copy(update={"evaluation": self._resolve_foreign(config)})
        if config.evaluation.attribution is not None:
            config = config.model_copy(update={"evaluation": self._resolve_masks(config)})
        pretraining = self._resolve_steps(config.pretraining, config)
        return config if pretraining == config.pretraining else config.model_copy(update={"pretraining": pretraining})

    def _resolve_steps(self, step: PretrainingConfig, config: TrialConfig) -> PretrainingConfig:
        if isinstance(step, TrainedStep):
            own: dict[str, Any] = {"init": self._resolve_steps(step.init, config)}
            if step.sources:
                from trainables.pretraining.sources import fit_source

                step = step.with_sources([fit_source(source, config.data) for source in step.sources])
                own["fingerprints"] = tuple(data.fingerprint for data in self.list_sources(step, config.data))
            return step.model_copy(update=own)
        if not isinstance(step, ImageNetPretraining | WeightsPretraining):
            return step
        from trainables.pretraining.imagenet import find_weights_file

        file = find_weights_file(config.model.name, step)
        if file is None:
            return step
        found = _sha256(file)
        if step.file_sha256 not in (None, found):
            raise ConfigError(
                f"pretraining.file_sha256: expected {step.file_sha256}, and {file} has {found}; name the "
                "file that was meant, or leave the digest out"
            )
        return step.model_copy(update={"file_sha256": found})

    def list_sources(self, step: TrainedStep, data: DataConfig) -> list[Dataset]:
        """Return the data sets that a step has of its own, brought to the side and channels of the study's images.

        Raises:
            DataError: an image of them is unusable.
        """
        if not step.sources:
            return []
        from trainables.pretraining.sources import fit_source

        found = []
        for source in step.sources:
            fitted = fit_source(source, data)
            key = fitted.model_dump_json()
            if key not in self._sources:
                self._sources[key] = self._load(fitted)
            found.append(self._sources[key])
        return found

    def digest(self, images: ImageSet) -> list[bytes]:
        """Return a digest of the pixels of every image, computed once per set."""
        if id(images) not in self._digests:
            from trainables.data.identity.copies import digest_images

            self._digests[id(images)] = images, digest_images(images.images)  # the set is kept: its id stays its own
        return self._digests[id(images)][1]

    def _resolve_foreign(self, config: TrialConfig) -> EvaluationConfig:
        from trainables.data.foreign import fit_foreign_data

        found = {}
        for name, source in config.evaluation.foreign.items():
            data = fit_foreign_data(source.data, config.data, self.dataset(config.data))
            fingerprint = self._load(data).fingerprint
            found[name] = source.model_copy(update={"data": data, "fingerprint": fingerprint})
        return config.evaluation.model_copy(update={"foreign": found})

    def _resolve_masks(self, config: TrialConfig) -> EvaluationConfig:
        from trainables.data.sources.lesion_masks import load_test_masks

        key = config.data.model_dump_json()
        if key not in self._masks:
            self._masks[key] = load_test_masks(
                self.dataset(config.data), config.data, cache_dir=self._cache_dir, verify=self._verify
            ).sha256
        assert config.evaluation.attribution is not None
        attribution = config.evaluation.attribution.model_copy(update={"masks_sha256": self._masks[key]})
        return config.evaluation.model_copy(update={"attribution": attribution})


@cache
def _sha256(path: Path) -> str:
    from trainables.pretraining.imagenet import compute_file_sha256

    return compute_file_sha256(path)
