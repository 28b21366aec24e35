"""Reference pages of the study file: every field with type, unit, default and example, made from the models."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from docs.site.study_examples import EXAMPLES, UNITS
from orchestrator.study.fields import kind_of, models_in
from orchestrator.study.study_file import Study
from orchestrator.study.yaml_source import read_yaml
from trainables.frozen import Frozen

Models = Sequence[type[BaseModel]]

#: Sources of images with labels, which have a page of their own.
_DATA = models_in(Study.model_fields["data"].annotation)
#: Bounds from here on are there for the machine (see trainables/frozen.py); the page does not name them.
_TECHNICAL = 1e6
_FOLDER = "reference/study"
_HEAD = """# Study file

Made from the schema that checks a study file (`robustsweep schema` writes it for an editor). The sections below are the
base values of every trial; what is left out has its default. A number says what it counts or its unit.
"""


def describe_study() -> dict[str, str]:
    """Return page → Markdown: one page for the study file and one for each of its sections.

    Raises:
        ValueError: a field has no description, no unit or no valid example; the message says where to add it.
    """
    sections = {name: models_in(info.annotation) for name, info in Study.model_fields.items()}
    own_pages = [name for name, models in sections.items() if models and name != "conditions"]
    parts = [_HEAD, f"Sections: {', '.join(f'[{name}]({name}.md)' for name in own_pages)}.\n"]
    parts += [f"{_doc(Study)}\n"]
    for name, info in Study.model_fields.items():
        parts += _describe_field(Study, name, info, prefix="", level=2, known=(), page=name in own_pages)
    pages = {f"{_FOLDER}/index.md": "\n".join(parts)}
    for name in own_pages:
        pages[f"{_FOLDER}/{name}.md"] = "\n".join(_describe_section(name, sections[name]))
    return pages


def _describe_section(name: str, models: Models) -> Iterator[str]:
    yield f"# {name}\n"
    yield f"{_sentence(Study.model_fields[name].description)}\n"
    yield from _describe_models(models, prefix="", level=2, known=models, anchor=name)


def _describe_models(models: Models, *, prefix: str, level: int, known: Models, anchor: str) -> Iterator[str]:
    """Yield the parts of the page for one model, or for the kinds of a section, what they share first."""
    if len(models) == 1:
        yield f"{_doc(models[0])}\n"
        for name, info in models[0].model_fields.items():
            yield from _describe_field(models[0], name, info, prefix=prefix, level=level, known=known, anchor=anchor)
        return
    for owner, kinds in _by_owner(models):
        title = ", ".join(f"`{kind_of(each)}`" for each in kinds)
        if len(kinds) == len(models):
            title = "Every kind"
        elif prefix:
            title = f"`{prefix}`: {title}"
        yield f"{'#' * level} {title}\n"
        if owner in models:
            yield f"{_doc(owner)}\n"
        below = f"{anchor}-{kind_of(owner)}" if owner in models else f"{anchor}-{owner.__name__.strip('_').lower()}"
        for name in owner.__annotations__:
            if name in owner.model_fields and name != "kind":
                info = owner.model_fields[name]
                yield from _describe_field(owner, name, info, prefix=prefix, level=level + 1, known=known, anchor=below)


def _by_owner(models: Models) -> list[tuple[type[BaseModel], list[type[BaseModel]]]]:
    """Return the classes that declare fields of the kinds, each with its kinds; those of the most kinds first."""
    owners: dict[type[BaseModel], list[type[BaseModel]]] = {}
    for model in models:
        for owner in model.__mro__:
            if issubclass(owner, Frozen) and owner is not Frozen and owner.__annotations__:
                owners.setdefault(owner, []).append(model)
    return sorted(owners.items(), key=lambda item: -len(item[1]))


def _describe_field(  # noqa: PLR0913 - where it stands on the page
    owner: type[BaseModel],
    name: str,
    info: FieldInfo,
    *,
    prefix: str,
    level: int,
    known: Models,
    anchor: str = "study",
    page: bool = False,
) -> Iterator[str]:
    """Yield heading, facts and description of a field, then the fields below it."""
    if name == "kind":
        return
    path = f"{prefix}.{name}" if prefix else name
    inner = models_in(info.annotation)
    is_source = owner is not Study and set(_DATA) <= set(inner)
    facts = [_describe_type(_schema(owner, name), _definitions(owner)), _unit(owner, name), _default(owner, name)]
    yield f"{'#' * min(level, 6)} `{path}` {{#{anchor}-{path.replace('.', '-')}}}\n"
    yield f"{' · '.join(filter(None, facts))} · example `{name}: {_example(owner, name, info)}`\n"
    yield f"{_sentence(info.description)}{f' [All its fields]({name}.md).' if page else ''}\n"
    if is_source:
        yield "The fields of sources with labels are those of [data](data.md).\n"
        inner = tuple(model for model in inner if model not in _DATA)
    if inner and not page and not set(inner) <= set(known):
        yield from _describe_models(inner, prefix=path, level=level + 1, known=known, anchor=anchor)


def _doc(model: type[BaseModel]) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", inspect.cleandoc(model.__doc__ or ""), flags=re.DOTALL)


def _sentence(text: str | None) -> str:
    if not text:
        raise ValueError("found a field without a description, expected one in its model")
    text = text.replace("the images: ", "The images: ", 1)  # lower case in messages
    return text if text.endswith((".", "…")) else f"{text}."


@cache
def _model_schema(owner: type[BaseModel]) -> dict[str, Any]:
    schema = owner.model_json_schema()
    if "$ref" in schema:  # it contains itself, as a step of a chain does
        schema |= schema["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def _schema(owner: type[BaseModel], name: str) -> dict[str, Any]:
    schema: dict[str, Any] = _model_schema(owner)["properties"][name]
    return schema


def _definitions(owner: type[BaseModel]) -> dict[str, Any]:
    definitions: dict[str, Any] = _model_schema(owner).get("$defs", {})
    return definitions


def _describe_type(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return the type and range of a value in words."""
    return _join(dict.fromkeys(_list_types(schema, definitions)))


def _list_types(schema: dict[str, Any], definitions: dict[str, Any]) -> list[str]:
    if "$ref" in schema:
        target = definitions[schema["$ref"].rpartition("/")[2]]
        return ["mapping" if "properties" in target else "any value"]
    if "const" in schema:
        return [f"`{_yaml(schema['const'])}`"]
    if "enum" in schema:
        return [f"`{_yaml(value)}`" for value in schema["enum"]]
    if "anyOf" in schema or "oneOf" in schema:
        options = schema.get("anyOf") or schema["oneOf"]
        return [word for option in options for word in _list_types(option, definitions)]
    return [_describe_plain_type(schema, definitions)]


def _describe_plain_type(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`"}
    kind = schema.get("type", "any value")
    if kind == "array":
        if "prefixItems" in schema:
            return f"list of {len(schema['prefixItems'])} numbers"
        items = _describe_type(schema["items"], definitions)
        return f"list of ({items})" if " or " in items else f"list of {items}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"mapping of {_describe_type(values, definitions)}" if isinstance(values, dict) else "mapping"
    if kind == "string":
        return "path" if schema.get("format") == "path" else "text"
    return f"{words.get(kind, '`null`' if kind == 'null' else kind)}{_range(schema)}"


def _range(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum", schema.get("exclusiveMaximum"))
    above = schema.get("exclusiveMinimum")
    if above is not None and schema["type"] == "integer":
        low, above = above + 1, None
    limits = [f"from {low:g}" if low is not None else "", f"above {above:g}" if above is not None else ""]
    if high is not None and high < _TECHNICAL:
        limits.append(f"to {high:g}" if "maximum" in schema else f"below {high:g}")
    return " ".join(["", *filter(None, limits)]).rstrip()


def _join(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _unit(owner: type[BaseModel], name: str) -> str:
    """Return what a number counts or its unit, an empty text for a pure number and for what is no number."""
    unit = UNITS.get(f"{owner.__name__}.{name}") or UNITS.get(name)
    if unit is None and name.startswith("num_"):
        unit = name.removeprefix("num_").replace("_", " ")
    return unit or next((word for end, word in _ENDS.items() if name.endswith(end)), "")


#: End of a field's name → unit.
_ENDS = {
    "_px": "px",
    "_minutes": "minutes",
    "_seconds": "seconds",
    "_hours": "hours",
    "_gib": "GiB",
    "epochs": "epochs",
}


def _default(owner: type[BaseModel], name: str) -> str:
    info = owner.model_fields[name]
    if info.is_required():
        return "required"
    value = _schema(owner, name).get("default")
    if value and isinstance(value, dict) and models_in(info.annotation):
        return f"default `{value['kind']}`" if "kind" in value else "default: that of each field"
    if value is None and models_in(info.annotation) and info.default is not None:
        return "default: that of each field"
    return f"default `{_yaml(value)}`"


def _example(owner: type[BaseModel], name: str, info: FieldInfo) -> str:
    """Return a value of the field in YAML, which the field accepts."""
    text = EXAMPLES.get(f"{owner.__name__}.{name}") or EXAMPLES.get(name)
    if text is None:
        text = _yaml(_guess_example(owner, name))
    kind = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    TypeAdapter(kind).validate_python(read_yaml(f"{name}: {text}", name).value[name])
    return text


def _guess_example(owner: type[BaseModel], name: str) -> Any:
    """Return another choice than the default, or the default itself."""
    schema = _schema(owner, name)
    default = schema.get("default")
    if schema.get("type") == "boolean":
        return not default
    choices = [value for value in schema.get("enum", ()) if value != default]
    if choices:
        return choices[0]
    if default in (None, [], {}, ""):
        raise ValueError(f"looked for an example of {owner.__name__}.{name}; add one to EXAMPLES of study_examples.py")
    return default


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000, sort_keys=False)
    return text.removesuffix("...\n").strip()
