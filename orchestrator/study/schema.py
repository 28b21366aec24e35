"""JSON schema of the study file, for editors and the reference."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from orchestrator.study.fields import FIELDS, SECTIONS
from orchestrator.study.steps import CHAIN
from orchestrator.study.study_file import SET_DESCRIPTION, Study


def study_schema() -> dict[str, Any]:
    """Return the JSON schema of the study file (draft 2020-12), with which editors complete and check it."""
    schema = Study.model_json_schema()
    properties = schema["properties"]
    for section in SECTIONS:
        if FIELDS[section].kinds:
            properties[section] = _with_short_forms(FIELDS[section].kinds, properties[section])
    contrastive = schema["$defs"]["ContrastivePretraining"]["properties"]
    for name in ("method", "views"):
        contrastive[name] = _with_short_forms(FIELDS[f"pretraining.{name}"].kinds, contrastive[name])
    properties[CHAIN] = _with_list(properties[CHAIN])
    for name in ("ContrastivePretraining", "SupervisedPretraining"):
        step = schema["$defs"][name]["properties"]
        step["init"] = _with_short_forms(FIELDS["pretraining.init"].kinds, step["init"])
    data = contrastive["data"]
    data["anyOf"] = [data["items"], {"type": "array", "items": data.pop("items")}]
    del data["type"]
    search = schema["$defs"]["SearchConfig"]["properties"]
    search["sampler"] = _with_short_forms(search["sampler"]["discriminator"]["mapping"], search["sampler"])
    kinds = search["early_stopping"]["anyOf"][0]["discriminator"]["mapping"]
    search["early_stopping"] = _with_short_forms(kinds, search["early_stopping"])
    values = {path: _value_schema(path) for path in FIELDS}
    named = {"type": "object", "minProperties": 1, "additionalProperties": {"$ref": "#/$defs/Fields"}}
    properties["factors"] |= {
        "properties": {path: _levels_schema(path) for path in FIELDS},
        "additionalProperties": named | {"description": "Named levels, each sets fields by their whole path."},
    }
    schema["$defs"]["Fields"] = {"type": "object", "properties": values, "additionalProperties": False}
    schema["$defs"]["Condition"]["properties"]["set"] = {
        "$ref": "#/$defs/Fields",
        "minProperties": 1,
        "description": SET_DESCRIPTION,
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"title": "RobustSweep study"}


def _with_short_forms(kinds: Iterable[str], schema: dict[str, Any]) -> dict[str, Any]:
    described = {key: schema.pop(key) for key in ("description", "default", "title") if key in schema}
    return described | {"anyOf": [{"enum": list(kinds)}, schema]}


def _with_list(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a chain, which may also be a list of kinds and steps."""
    described = {key: schema.pop(key) for key in ("description", "default", "title") if key in schema}
    step = {"anyOf": [{"enum": list(FIELDS[CHAIN].kinds)}, {"type": "object", "required": ["kind"]}]}
    return described | {"anyOf": [*schema["anyOf"], {"type": "array", "minItems": 1, "items": step}]}


def _value_schema(path: str) -> dict[str, Any]:
    """Return the schema of a field's value; that of a section accepts partial mappings and dotted keys."""
    field = FIELDS[path]
    if not field.models:
        refs = [{"$ref": f"#/$defs/{owner.__name__}/properties/{field.name}"} for owner in field.owners]
        return refs[0] if len(refs) == 1 else {"anyOf": refs}
    inner = {name.removeprefix(f"{path}.") for name in FIELDS if name.startswith(f"{path}.")}
    partial = {"type": "object", "propertyNames": {"enum": sorted(inner)}}
    partial["properties"] = {"kind": {"enum": list(field.kinds)}} if field.kinds else {}
    if path == CHAIN:
        return _with_list({"anyOf": [{"enum": list(field.kinds)}, partial]})
    return {"anyOf": [{"enum": list(field.kinds)}, partial]} if field.kinds else partial


def _levels_schema(path: str) -> dict[str, Any]:
    value = _value_schema(path)
    listed = {"type": "array", "minItems": 1, "items": value}
    return {"anyOf": [listed, {"type": "object", "minProperties": 1, "additionalProperties": value}]}
