"""Models in MLflow: written without pickle, uploaded, registered, and compared without being loaded."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orchestrator.tracking.client import follow_pages, open_place
from orchestrator.tracking.guard.places import check_identifier


def find_versions(client: Any, name: str) -> Iterator[Any]:
    """Yield the versions of a registered model, newest first, page by page; nothing if there is no such model."""
    what, order = f"name = '{name}'", ["version_number DESC"]
    return follow_pages(lambda token: client.search_model_versions(what, order_by=order, page_token=token))


def _import_flavour() -> Any:
    """Return ``mlflow.pytorch``; importing it takes seconds, and warns of type hints in MLflow's own code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*type hint is inferred as AnyType")
        import mlflow.pyfunc  # saving imports it too
        import mlflow.pytorch
    return mlflow.pytorch


def save_torch_model(module: Any, folder: Path, *, metadata: dict[str, Any]) -> None:
    """Write an ``ExportedNetwork`` (``trainables.exported.network``) as an MLflow model without pickle.

    The model is a graph for any batch size. Its input example is made of the images of the self-test: no patient's
    image gets into the registry.

    Args:
        module: network in evaluation mode.
        folder: folder to write, which does not exist yet.
        metadata: JSON values that are shown with the model.

    Raises:
        RuntimeError: torch cannot export the network.
    """
    flavour = _import_flavour()
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    from trainables.exported.form import make_test_images

    example = make_test_images(module.config.images).numpy()
    with torch.inference_mode():
        shape = module(torch.from_numpy(example)).shape
    # Without names: an input with a name would have to be a dict, which the flavour's own predict refuses (3.17).
    inputs = Schema([TensorSpec(np.dtype(np.uint8), (-1, *example.shape[1:]))])
    outputs = Schema([TensorSpec(np.dtype(np.float32), (-1, *shape[1:]))])
    flavour.save_model(
        module,
        str(folder),
        signature=ModelSignature(inputs, outputs),
        input_example=example,
        serialization_format="pt2",
        pip_requirements=[f"torch=={version('torch')}", f"numpy=={version('numpy')}"],
        metadata=metadata,
    )


def load_torch_model(folder: Path) -> Any:
    """Return the module of a folder that ``save_torch_model`` has written in this process.

    Never of one that was downloaded: loading runs code that it names, and texts in a ``.pt2`` are evaluated.
    """
    return _import_flavour().load_model(str(folder))


def upload_model(client: Any, model_id: str, folder: Path) -> None:
    """Write the files of a folder to where a logged model has its artifacts.

    Call it within ``translating_errors``.

    Raises:
        RefusedError: nothing may be written there.
    """
    location = client.get_logged_model(check_identifier(model_id)).artifact_location
    open_place(client.tracking_uri, location).log_artifacts(str(folder))


def download_file(client: Any, name: str, number: str, path: str, folder: Path) -> Path:
    """Return a copy, in ``folder``, of a file of a version in the registry.

    Call it within ``translating_errors``.

    Raises:
        RefusedError: nothing may be read from where it lies.
    """
    source = client.get_model_version_download_uri(name, check_identifier(number))
    if source.startswith("models:/"):
        source = client.get_logged_model(check_identifier(source.removeprefix("models:/"))).artifact_location
    return Path(open_place(client.tracking_uri, source).download_artifacts(path, dst_path=str(folder)))


@contextmanager
def default_store(tracking_uri: str) -> Iterator[None]:
    """Make a store MLflow's own default within the context: the registry of 3.17 ignores the client's store."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")  # set_tracking_uri keeps it there, None unsets it
    mlflow.set_tracking_uri(tracking_uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]
