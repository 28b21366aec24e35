"""Base class of the configuration models, types that several models share, and canonical JSON."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def canonical_json(value: Any) -> str:
    """Return ``value`` as JSON with sorted keys and no spaces, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


#: ``json_schema_extra`` of a field that never enters a signature: a location or a behaviour, not science.
UNHASHED: dict[str, Any] = {"identity": False}


#: ``json_schema_extra`` of a field that enters a signature only if it is set: it is newer than stored trials.
SET_ONLY: dict[str, Any] = {"identity": "if set"}


def revised(revision: int) -> dict[str, Any]:
    """Return the ``json_schema_extra`` of a field whose meaning has changed for all values but its default.

    Trials that set it get other signatures, trials that do not keep theirs.
    """
    return {"revision": revision}


def unhashed(default: Any, description: str, **limits: Any) -> Any:
    """Return a field that never enters a signature."""
    return Field(default, description=description, json_schema_extra=UNHASHED, **limits)


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
#: The upper bounds here and in the models are assumptions: above any sensible value, and below values that exhaust
#: the memory of the planning machine or overflow an integer.
PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
#: A weight, scale or penalty: far larger ones overflow float32 in the first step of a trial.
LARGEST = 1e6
#: A learning rate or norm: smaller ones update no weight in float32.
SMALLEST = 1e-12
Weight = Annotated[float, Field(ge=0.0, le=LARGEST)]
Scale = Annotated[float, Field(gt=0.0, le=LARGEST)]
Rate = Annotated[float, Field(ge=SMALLEST, le=LARGEST)]
ImageSize = Annotated[int, Field(gt=0, le=16_384)]
#: The fields that every source of images has, for the sources whose default is another.
StoredSize = Annotated[ImageSize, Field(description="Side in px to which every image is brought before storage.")]
Channels = Annotated[Literal[1, 3], Field(description="Channels stored: 1 grey, 3 RGB.")]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Severity = Annotated[int, Field(ge=1, le=5)]
#: Name of a class or a site, in the form in which data are read (``data.identity.texts.normalise``).
Text = Annotated[str, AfterValidator(lambda text: unicodedata.normalize("NFC", text).strip())]

#: Metrics that may choose an epoch; of robustness/… on shifted validation images (``evaluation.validation_shifts``).
SelectBy = Literal[
    "loss", "accuracy", "balanced_accuracy", "auroc",
    "robustness/mean_accuracy", "robustness/mean_balanced_accuracy", "robustness/mean_auroc",
    "dice",
]  # fmt: skip
#: Kind of a task → what may choose an epoch, its default first.
SELECTED_BY: dict[str, tuple[str, ...]] = {
    "classification": (
        "balanced_accuracy", "loss", "accuracy", "auroc",
        "robustness/mean_accuracy", "robustness/mean_balanced_accuracy", "robustness/mean_auroc",
    ),
    "segmentation": ("dice", "loss"),
}  # fmt: skip

#: Not hashed: the fingerprint of the data holds the classes in their order.
Classes = Annotated[
    tuple[Text, ...] | None,
    Field(description="Names of the classes in their order; none: those found, sorted.", json_schema_extra=UNHASHED),
]


def _check_expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"found {text!r}, which is no regular expression: {error}") from error
    return text


Expression = Annotated[str, AfterValidator(_check_expression)]


class Frozen(BaseModel):
    """Base class of all configuration models: immutable; unknown keys and non-finite numbers are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
