"""Conversion of an exported network to one ONNX file: uint8 images to logits, with preprocessing and any batch size.

Needs the packages of the extra ``onnx``: torch's exporter uses onnxscript, the check runs in onnxruntime.
"""

from __future__ import annotations

import io
import json
import logging
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from trainables.errors import ConfigError
from trainables.exported.form import make_test_images
from trainables.exported.network import ExportedNetwork

INPUT, OUTPUT = "images", "logits"
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_onnx_installed() -> None:
    """Check that ONNX files can be written and run here.

    Raises:
        ConfigError: a package is missing; the message names the extra to install.
    """
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"asked for an ONNX file, and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; "
            "install the extra: pip install 'robustsweep[onnx]'"
        )


def build_onnx(model: ExportedNetwork) -> bytes:
    """Return the network as an ONNX file with the input ``images`` (uint8, batch × c × h × w) and output ``logits``.

    Raises:
        ConfigError: packages are missing, or torch cannot express the network in ONNX.
    """
    check_onnx_installed()
    example = make_test_images(model.config.images)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # its rewriter reports every folded constant
    try:
        program: Any = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise ConfigError(
            f"torch could not write {model.config.architecture.name} as ONNX: {cause}; export without --onnx "
            "(model.safetensors and the MLflow model hold the same network), or choose another network or regulariser"
        ) from error
    program.model.producer_name = "robustsweep"
    program.model.metadata_props["classes"] = json.dumps(model.config.classes)
    program.model.metadata_props["provenance"] = json.dumps(model.config.provenance, sort_keys=True)
    buffer = io.BytesIO()
    program.save(buffer, external_data=False)
    return buffer.getvalue()


def run_onnx(data: bytes, images: UInt8[np.ndarray, "n c h w"]) -> Float32[np.ndarray, "n classes *space"]:
    """Return the logits that onnxruntime computes on a CPU with the ONNX file ``data``."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run([OUTPUT], {INPUT: images})[0]
    return logits
