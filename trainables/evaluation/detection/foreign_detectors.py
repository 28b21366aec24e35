"""Detectors of the package pytorch-ood by name, on stored features and logits: an adapter to its two kinds of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int

from trainables.errors import ConfigError, DataError
from trainables.evaluation.detection.mahalanobis import split_rows
from trainables.evaluation.detection.virtual_logit import choose_dimension, find_last_layer


def fit_foreign_detector(
    name: str,
    features: Float[np.ndarray, "n features"],
    labels: Int[np.ndarray, " n"],
    logits: Float[np.ndarray, "n classes"],
) -> Callable[[Float[np.ndarray, "m features"], Float[np.ndarray, "m classes"]], Float64[np.ndarray, " m"]]:
    """Return a detector of pytorch-ood fitted on the training split; its values are higher in distribution.

    What its constructor wants is given by name: no encoder and no model, since features and logits are stored; the last
    layer, found again from them (``find_last_layer``), as w and b or as a module; the dimension d of ViM; everything
    else has the package's defaults.

    Args:
        name: class in ``pytorch_ood.detector``, such as ``SHE``, ``KLMatching`` or ``NNGuide``.
        features: penultimate features of the training images.
        labels: their classes.
        logits: their logits.

    Raises:
        ConfigError: if pytorch-ood is not installed, has no such detector, or it needs more than stored arrays.
        DataError: if the detector refuses the training images.
    """
    kind, on_features = _find_class(name)
    detector = kind(**_find_arguments(name, kind, features, logits))
    if detector.requires_fit:
        import torch

        fit = detector.fit_features if on_features else detector.fit_logits
        try:
            with torch.no_grad():
                fit(_as_tensor(features if on_features else logits), torch.from_numpy(labels.astype(np.int64)))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise DataError(
                f"fitted the detector pytorch_ood/{name} to {len(labels)} training images and it refused them "
                f"({type(error).__name__}: {error}); expected images of every class, some of them classified right"
            ) from error

    def score(
        features: Float[np.ndarray, "m features"], logits: Float[np.ndarray, "m classes"]
    ) -> Float64[np.ndarray, " m"]:
        import torch

        predict, inputs = (detector.predict_features, features) if on_features else (detector.predict_logits, logits)
        found = np.empty(len(inputs))
        with torch.no_grad():
            for rows in split_rows(len(inputs)):
                found[rows] = -np.asarray(predict(_as_tensor(inputs[rows])), dtype=np.float64)
        return found

    return score


def _as_tensor(values: Float[np.ndarray, "n columns"]) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _find_class(name: str) -> tuple[Any, bool]:
    """Return the class of a detector, and whether it takes features rather than logits."""
    try:
        from pytorch_ood import api, detector
    except ImportError as error:
        raise ConfigError(
            f"looked for the detector pytorch_ood/{name} and found no package pytorch-ood; "
            "pip install 'robustsweep[ood]'"
        ) from error
    kinds = {
        key: value
        for key, value in vars(detector).items()
        if inspect.isclass(value) and issubclass(value, (api.FeaturesDetector, api.LogitsDetector))
    }
    if name not in kinds:
        raise ConfigError(
            f"looked for the detector pytorch_ood/{name}; expected one that works on features or logits: "
            f"{', '.join(sorted(kinds))}"
        )
    return kinds[name], issubclass(kinds[name], api.FeaturesDetector)


def _find_arguments(
    name: str, kind: Any, features: Float[np.ndarray, "n features"], logits: Float[np.ndarray, "n classes"]
) -> dict[str, Any]:
    wanted = [
        parameter.name
        for parameter in inspect.signature(kind.__init__).parameters.values()
        if parameter.name != "self"
        and parameter.default is parameter.empty
        and parameter.kind is not parameter.VAR_KEYWORD
    ]
    known: dict[str, Any] = {"encoder": None, "model": None, "d": choose_dimension(features.shape[1])}
    if {"w", "b", "head"} & set(wanted):
        known |= _rebuild_last_layer(features, logits)
    missing = [parameter for parameter in wanted if parameter not in known]
    if missing:
        raise ConfigError(
            f"built the detector pytorch_ood/{name}, which needs {', '.join(missing)}; expected one that needs stored "
            "features, logits and the last layer only"
        )
    return {parameter: known[parameter] for parameter in wanted}


def _rebuild_last_layer(
    features: Float[np.ndarray, "n features"], logits: Float[np.ndarray, "n classes"]
) -> dict[str, Any]:
    import torch

    layer, _, _ = find_last_layer(features, logits)
    head = torch.nn.Linear(features.shape[1], logits.shape[1])
    with torch.no_grad():
        head.weight.copy_(_as_tensor(layer.weights))
        head.bias.copy_(torch.from_numpy(layer.bias.astype(np.float32)))
    return {"w": head.weight.detach(), "b": head.bias.detach(), "head": head}
