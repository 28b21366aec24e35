"""Supervised ImageNet weights from a file, the hub cache, or a download; and whether they can be had at all."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from torch import Tensor

from trainables.config import ImageNetPretraining
from trainables.errors import ConfigError, WeightsUnavailableError

#: Asking whether a server is there must not hold up planning.
_REACH_SECONDS = 5.0


def find_missing_weights(model_name: str, config: ImageNetPretraining) -> str | None:
    """Return why the weights cannot be had, None when they can (file or cache present, or the server answers)."""
    if config.file is not None:
        return None if config.file.is_file() else f"pretraining.file: there is no file {config.file}"
    url, cached = _find_source(model_name, config)
    if cached:
        return None
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=_REACH_SECONDS):
            return None
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        return f"ImageNet weights for {model_name} are not in the cache and {url} cannot be reached ({reason})"


def compute_file_sha256(path: Path) -> str:
    """Return the SHA-256 of a weights file: its identity, wherever it lies."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_imagenet(model_name: str, config: ImageNetPretraining) -> dict[str, Tensor]:
    """Return the RGB state dict of the network, in its own library's names.

    Raises:
        WeightsUnavailableError: neither file nor cache nor download has them.
        ConfigError: no such weights for this network.
    """
    if config.file is not None:
        return _load_file(config.file, config.file_sha256)
    try:
        if model_name.startswith("timm/"):
            import timm

            backbone = timm.create_model(_timm_name(model_name, config), pretrained=True)
        else:
            from torchvision import models

            backbone = models.get_model(model_name, weights=_torchvision_weights(model_name, config))
    except (urllib.error.URLError, OSError) as error:
        raise WeightsUnavailableError(
            f"pretraining: fetched ImageNet weights for {model_name} and failed: {error}; "
            "put them into the cache, name a file with pretraining.file, or set pretraining.on_unavailable: skip"
        ) from error
    state: dict[str, Tensor] = backbone.state_dict()
    return state


def _load_file(path: Path, sha256: str | None) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsUnavailableError(f"pretraining.file: there is no file {path}")
    if sha256 is not None and compute_file_sha256(path) != sha256:
        raise ConfigError(
            f"pretraining.file: {path} has changed since the study was planned; run it again to plan anew"
        )
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    import torch

    content: Any = torch.load(path, map_location="cpu", weights_only=True)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"pretraining.file: {path} holds {type(content).__name__}, expected a state dict of tensors")
    return state


def _find_source(model_name: str, config: ImageNetPretraining) -> tuple[str, bool]:
    """Return the URL of the weights, and whether they are in the local cache."""
    if model_name.startswith("timm/"):
        return _find_timm_source(model_name, config)
    import torch

    url = str(_torchvision_weights(model_name, config).url)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    return url, cached.is_file()


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
    name = model_name.removeprefix("timm/").split(".")[0]
    return model_name.removeprefix("timm/") if config.weights == "default" else f"{name}.{config.weights}"


def _find_timm_source(model_name: str, config: ImageNetPretraining) -> tuple[str, bool]:
    import timm
    import torch
    from huggingface_hub import try_to_load_from_cache

    name = _timm_name(model_name, config)
    cfg = timm.models.get_pretrained_cfg(name)
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        known = ", ".join(timm.list_pretrained(f"{name.split('.')[0]}*")) or "none"
        raise ConfigError(f"pretraining.weights: timm has no weights {name!r}; known for this network: {known}")
    if cfg.hf_hub_id:
        repository = cfg.hf_hub_id if cfg.architecture in cfg.hf_hub_id else f"{cfg.hf_hub_id}{name}"
        cached = isinstance(try_to_load_from_cache(repository, "model.safetensors"), str)
        return f"https://huggingface.co/{repository}/resolve/main/model.safetensors", cached
    return cfg.url, (Path(torch.hub.get_dir()) / "checkpoints" / cfg.url.rsplit("/", 1)[-1]).is_file()
