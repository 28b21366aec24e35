"""Imports of the fork server: all modules that trials need, so that a forked trial imports nothing itself."""

from __future__ import annotations

import atexit
import gc
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

#: Modules that every trial imports: its own and those that decode data, those that torch imports when an optimiser is
#: first built, safetensors at its first write, importlib.resources for the severity tables, numpy and zipfile when
#: predictions are read.
_TRIAL = (
    "trainables.trial", "trainables.tasks.classification", "trainables.data.cache_writer",
    "trainables.data.sources.arrays",
    "trainables.data.sources.coloured", "trainables.data.sources.manifests", "trainables.data.sources.phantom",
    "trainables.data.sources.torchvision_sets", "torch._dynamo", "numpy.ctypeslib", "importlib.resources.readers",
    "importlib.readers", "numpy.ma", "encodings.cp437",
)  # fmt: skip
#: Modules of the networks. timm itself imports torchvision.
_TIMM, _TORCHVISION = ("timm",), ("torchvision.models",)
#: Modules that only stages import.
_CONTRASTIVE = (
    "trainables.stage", "trainables.pretraining.supervised", "trainables.pretraining.contrastive", "lightly.loss",
    "lightly.models.modules.heads", "lightly.models.utils", "lightly.utils.lars",
)  # fmt: skip
#: Modules that networks of volumes import.
_MONAI = ("monai.networks.nets", "trainables.data.segmentation.decathlon")
#: Modules that segmentations import.
_SEGMENTATION = (
    "trainables.tasks.segmentation", "segmentation_models_pytorch", "trainables.data.segmentation.image_masks",
    "scipy.ndimage",
)  # fmt: skip


def preload(model_names: Sequence[str], *, contrastive: bool = False, segmentation: bool = False) -> None:
    """Import the modules that trials of these networks need, whatever their data, augmentation and regulariser.

    Only imports: no thread is started and no GPU is used, so that forking stays safe.

    Args:
        model_names: values of ``model.name``, e.g. ``timm/resnet18`` and ``resnet18``.
        contrastive: whether to import the modules of stages, too.
        segmentation: whether to import those of segmentations.

    Raises:
        ImportError: if a package is not installed.
    """
    from PIL import Image

    modules = list(_TRIAL)
    if any(name.startswith("timm/") for name in model_names):
        modules += _TIMM
    if any(name.startswith("monai/") for name in model_names):
        modules += _MONAI
    if any(not name.startswith(("timm/", "monai/")) for name in model_names):
        modules += _TORCHVISION
    if contrastive:
        modules += _CONTRASTIVE
    if segmentation:
        modules += _SEGMENTATION
    for module in modules:
        importlib.import_module(module)
    Image.preinit()  # the formats of the JPEG shift


#: Python frees all objects at exit; compiled modules warn about frozen ones as leaked (nanobind).
atexit.register(gc.unfreeze)


@contextmanager
def imports_kept() -> Iterator[None]:
    """Pause the cyclic garbage collector; after success, exclude all existing objects from later collections.

    Use it for one-off work such as imports: cycles that are garbage by then are never freed. Importing MLflow and
    opening a new database takes 2.4 to 3.2 s of CPU where Ray has been imported, 0.7 to 0.9 s of it for collections.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_enabled:  # otherwise another thread is inside this context and enables it
            gc.enable()
