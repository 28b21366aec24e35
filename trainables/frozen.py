"""What every configuration model is made of: immutability, types that several sections share."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


#: Marks a field that never enters a signature: a location or a way to behave, not science.
UNHASHED: dict[str, Any] = {"identity": False}
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
#: The upper bounds here and in the models are assumptions: above anything that is meant, below what takes a planning
#: machine's memory or overflows a machine's integer.
PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
ImageSize = Annotated[int, Field(gt=0, le=16_384)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Frozen(BaseModel):
    """Base of all configuration: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
