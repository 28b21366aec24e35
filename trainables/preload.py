"""Import, in a process that will fork, all that trials import later: a forked trial then imports nothing."""

from __future__ import annotations

import atexit
import gc
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

#: What every trial comes to: itself, what torch imports when an optimiser is first built, safetensors when it first
#: writes, importlib.resources when the severity tables are read, numpy and zipfile when predictions are.
_TRIAL = (
    "trainables.trial", "torch._dynamo", "numpy.ctypeslib", "importlib.resources.readers", "importlib.readers",
    "numpy.ma", "encodings.cp437",
)  # fmt: skip
#: Where networks come from. timm itself imports torchvision.
_TIMM, _TORCHVISION = ("timm",), ("torchvision.models",)
#: What a contrastive stage needs besides.
_CONTRASTIVE = ("trainables.pretraining.contrastive", "lightly.loss", "lightly.models.modules.heads")


def preload(model_names: Sequence[str], *, contrastive: bool = False) -> None:
    """Import the modules that trials of these networks need, whatever their data, augmentation and regulariser.

    Nothing is computed: no thread is started and no GPU touched, so that forking stays safe.

    Args:
        model_names: as in ``model.name``, e.g. ``timm/resnet18`` and ``resnet18``.
        contrastive: import also what contrastive stages need.

    Raises:
        ImportError: a package is not installed.
    """
    from PIL import Image

    modules = list(_TRIAL)
    if any(name.startswith("timm/") for name in model_names):
        modules += _TIMM
    if any(not name.startswith("timm/") for name in model_names):
        modules += _TORCHVISION
    if contrastive:
        modules += _CONTRASTIVE
    for module in modules:
        importlib.import_module(module)
    Image.preinit()  # the formats of the JPEG shift


#: At exit Python frees everything, and compiled modules complain of what they still find (nanobind's "leaked").
atexit.register(gc.unfreeze)


@contextmanager
def imports_kept() -> Iterator[None]:
    """Pause the search for cycles, and leave out of every later one what exists when the body has succeeded.

    For imports and the like, once each: cycles that are garbage by then are never freed. Importing MLflow and opening a
    new database takes 2.4 to 3.2 s of CPU where Ray has been imported, 0.7 to 0.9 of them such searches.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_enabled:  # else another thread is at it, and will
            gc.enable()
