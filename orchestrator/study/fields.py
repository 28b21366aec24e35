"""Fields of a trial by dotted path, the names that factors, conditions and overrides may use."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from trainables.config import TrialConfig
from trainables.frozen import canonical_json

#: Maximum number of options that a word is compared with, at 10 µs each.
_MAX_COMPARED = 1000

#: Fields that no factor may set. Seeds never come from the arm, so that arms are paired; the rest is bookkeeping.
_NOT_A_CHOICE = frozenset({"schema_version", "seed", "replicate", "encoder", "earlier_encoders", "matching"})


@dataclass(frozen=True)
class FieldPath:
    """One field of the trial. The kinds of a section may declare the same path in several models."""

    path: str
    #: Models that declare the field, all as ``name``.
    owners: tuple[type[BaseModel], ...]
    name: str
    #: Models of a section: one, or one per kind. Empty for a plain value.
    models: tuple[type[BaseModel], ...]
    is_file: bool

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of a tagged section, () for any other field."""
        return tuple(kind_of(model) for model in self.models if "kind" in model.model_fields)


def kind_of(model: type[BaseModel]) -> str:
    """Return the ``kind`` of a model that is a member of a tagged union."""
    return str(model.model_fields["kind"].default)


def models_in(annotation: Any) -> tuple[type[BaseModel], ...]:
    """Return the models that a type annotation allows, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    return tuple(model for argument in get_args(annotation) for model in models_in(argument))


def _is_whole(path: str, annotation: Any) -> bool:
    """Return whether a field is set as a whole, because what is below it has no paths.

    So it is for mappings by name, such as ``evaluation.foreign``, for the images of a step of a chain, and for the
    steps before the last two, which a list says better.
    """
    names = path.split(".")
    is_in_chain = names[0] == "pretraining" and (names[-1] == "data" or names[1:] == ["init", "init"])
    return get_origin(annotation) is dict or is_in_chain


def _collect(models: Iterable[type[BaseModel]], prefix: str, fields: dict[str, FieldPath]) -> None:
    for model in models:
        for name, info in model.model_fields.items():
            if not prefix and name in _NOT_A_CHOICE:
                continue
            path = f"{prefix}{name}"
            known = fields.get(path)
            inner = () if _is_whole(path, info.annotation) else models_in(info.annotation)
            is_file = Path in (info.annotation, *get_args(info.annotation))
            owners = (*known.owners, model) if known else (model,)
            fields[path] = FieldPath(path, owners, name, inner, is_file)
            _collect(inner, f"{path}.", fields)


def _fields() -> dict[str, FieldPath]:
    fields: dict[str, FieldPath] = {}
    _collect([TrialConfig], "", fields)
    return fields


#: Dotted path (``augmentation.strength``) → field; sections are included.
FIELDS: dict[str, FieldPath] = _fields()

#: Sections of a trial in the order of the study file.
SECTIONS = tuple(path for path in FIELDS if "." not in path)


def find_nearest(word: str, options: Iterable[str]) -> str | None:
    """Return the option that ``word`` is most likely a misspelling of, None if no option is similar."""
    options = list(options)
    same_end = [option for option in options if option.endswith(f".{word}")]
    if same_end:
        return min(same_end, key=len)
    by_lower = {option.lower(): option for option in options[:_MAX_COMPARED]}
    close = difflib.get_close_matches(word[:100].lower(), list(by_lower), n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def suggest(word: str, options: Iterable[str]) -> str:
    """Return ``; did you mean x?``, or an empty string if no option is similar."""
    nearest = find_nearest(word, options)
    return f"; did you mean {nearest}?" if nearest else ""


def describe_replicate(config: TrialConfig) -> str:
    """Return what makes the trial of replicate 0, without what replicates share: the split, numbers of encoders."""
    described = config.model_dump(mode="json", exclude={"data": {"split"}})
    step = described["pretraining"]
    while step is not None:
        step.pop("encoders", None)
        step = step.get("init")
    return canonical_json(described)
