"""Validation errors of pydantic → problems of the study file: the key, the value found and the values expected."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from orchestrator.study.fields import kind_of, models_in, suggest
from orchestrator.study.yaml_source import Key, format_value

#: Longer lists of options are not printed, only the nearest option.
_MAX_LISTED = 24


def explain(error: ValidationError, model: type[BaseModel], data: Any) -> Iterator[tuple[Key, str, str]]:
    """Yield (key, pydantic's error type, text) for each wrong value, with the errors of all union members in one text.

    Args:
        error: error from the validation of ``data`` as ``model``.
        model: model at the root.
        data: plain values that were validated.
    """
    texts: dict[tuple[Key, str], list[str]] = {}
    for details in error.errors(include_url=False):
        key = _plain_key(details["loc"], details["type"], data)
        found, expected = _describe(dict(details), key, model, data)
        texts.setdefault((key, found), [details["type"]]).append(expected)
    for (key, found), (kind, *tried) in texts.items():
        yield key, kind, found + " or ".join(dict.fromkeys(tried))


def _plain_key(location: tuple[int | str, ...], kind: str, data: Any) -> Key:
    """Return pydantic's location without the tags and type names that it inserts for unions."""
    key: Key = ()
    node = data
    for index, part in enumerate(location):
        is_last = index == len(location) - 1
        is_tag = isinstance(node, Mapping) and node.get("kind") == part and not (is_last and kind == _UNKNOWN)
        if _has(node, part) and not is_tag:
            key, node = (*key, part), node[part]
        elif is_last and kind == _MISSING:
            key = (*key, part)
    return (*key, "kind") if kind in ("union_tag_invalid", "union_tag_not_found") else key


_UNKNOWN, _MISSING = "extra_forbidden", "missing"


def _describe(details: Mapping[str, Any], key: Key, model: type[BaseModel], data: Any) -> tuple[str, str]:
    """Return the two parts of a text: the value found, with the joining words, and the values expected."""
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    if kind == _UNKNOWN:
        owner = find_model(model, data, key[:-1])
        valid = list(owner.model_fields) if owner else []
        return "unknown key", list_options(str(key[-1]), valid)
    if kind == _MISSING:
        owner = find_model(model, data, key[:-1])
        info = owner.model_fields.get(str(key[-1])) if owner else None
        return "is missing", f" ({info.description})" if info and info.description else ", expected a value"
    if kind == "union_tag_not_found":
        kinds = _kinds_at(model, data, key[:-1])
        return "is missing", f", expected one of {', '.join(kinds)}"
    if kind == "union_tag_invalid":
        return f"found {format_value(context['tag'])}", list_options(
            str(context["tag"]), _kinds_at(model, data, key[:-1])
        )
    if kind == "value_error":
        return str(details["msg"]).removeprefix("Value error, "), ""
    expected = _expected(kind, str(details["msg"]), value, context)
    if value in ("none", "None") and _takes_null(find_model(model, data, key[:-1]), key):
        expected += " or null"
    return f"found {format_value(value)}, expected ", expected


def _takes_null(owner: type[BaseModel] | None, key: Key) -> bool:
    info = owner.model_fields.get(str(key[-1])) if owner and key else None
    return info is not None and type(None) in get_args(info.annotation)


def list_options(word: str, options: list[str]) -> str:
    """Return ``, expected one of …; did you mean …?`` for a word that is not among the options."""
    listed = f", expected one of {', '.join(options)}" if 0 < len(options) <= _MAX_LISTED else ""
    return listed + suggest(word, options)


def _expected(kind: str, message: str, value: Any, context: Mapping[str, Any]) -> str:
    if kind == "literal_error":
        return context["expected"] + suggest(str(value), re.findall(r"'([^']*)'", context["expected"]))
    if kind == "too_long":
        return f"at most {context['max_length']:,} entries"
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    text = message.removeprefix("Input should be ").replace("a valid ", "a ").replace("a integer", "an integer")
    text = re.sub(r", unable to parse string as an? \w+| with a fractional part", "", text)
    return f"a value {text}" if text.startswith(("greater", "less")) else text


#: Error type → expected value in words, where pydantic's text uses Python terms.
_EXPECTED = {
    "string_pattern_mismatch": "a name of at most 100 letters, digits, '.', '_', '-', the first a letter or digit",
    "string_type": "text (in quotes)",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "too_short": "at least one entry",
}


def find_model(model: type[BaseModel], data: Any, key: Key) -> type[BaseModel] | None:
    """Return the model that describes ``data`` at ``key``, None for plain values and below unknown kinds."""
    options, node = _options_at(model, data, key)
    return _choose(options, node)


def _options_at(model: type[BaseModel], data: Any, key: Key) -> tuple[tuple[type[BaseModel], ...], Any]:
    """Return the models that may describe ``data`` at ``key``, and the value there."""
    options: tuple[type[BaseModel], ...] = (model,)
    node = data
    for part in key:
        if isinstance(part, str):  # else an item of a list of models
            current = _choose(options, node)
            info = current.model_fields.get(part) if current else None
            options = models_in(info.annotation) if info else ()
        node = node[part] if _has(node, part) else None
    return options, node


def _has(node: Any, part: str | int) -> bool:
    if isinstance(node, Mapping):
        return part in node
    return isinstance(node, list | tuple) and isinstance(part, int) and part < len(node)


def _choose(options: tuple[type[BaseModel], ...], data: Any) -> type[BaseModel] | None:
    if len(options) == 1:
        return options[0]
    kind = data.get("kind") if isinstance(data, Mapping) else None
    return next((option for option in options if kind_of(option) == kind), None)


def _kinds_at(model: type[BaseModel], data: Any, key: Key) -> list[str]:
    options, _ = _options_at(model, data, key)
    return [kind_of(option) for option in options if "kind" in option.model_fields]
