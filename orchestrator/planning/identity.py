"""Signatures: hashes of a config in canonical JSON. Paths, hosts and hardware never enter."""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic import BaseModel

from trainables.frozen import canonical_json

#: Hex digits kept of the SHA-256: 64 bits, a collision among 10⁵ trials has probability 3·10⁻¹⁰.
SIGNATURE_LENGTH = 16


def compute_identity(config: BaseModel) -> dict[str, Any]:
    """Return the fields of ``config`` that decide a result, nested, without the fields marked ``identity: False``,
    and without those marked ``SET_ONLY`` that have their default.

    A field marked with a ``revision`` (``frozen.revised``) has it beside its value, unless that is the default.
    """
    identity: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("identity") is False:
            continue
        value = getattr(config, name)
        if isinstance(extra, dict) and extra.get("identity") == "if set" and value == field.default:
            continue
        identity[name] = compute_identity(value) if isinstance(value, BaseModel) else _plain(value)
        if isinstance(extra, dict) and "revision" in extra and value != field.default:
            identity[name] = {"value": identity[name], "revision": extra["revision"]}
    return identity


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, BaseModel):
        return compute_identity(value)
    return value


def compute_signature(config: BaseModel, data_fingerprint: str) -> str:
    """Return the signature of a trial or stage: a hash of its identity and of the fingerprint of its data."""
    return hash_identity(compute_identity(config), data_fingerprint)


def hash_identity(identity: dict[str, Any], data_fingerprint: str) -> str:
    """Return the signature of an identity (from ``compute_identity``) and of the fingerprint of the data."""
    text = canonical_json({"config": identity, "data_fingerprint": data_fingerprint})
    return hashlib.sha256(text.encode()).hexdigest()[:SIGNATURE_LENGTH]
