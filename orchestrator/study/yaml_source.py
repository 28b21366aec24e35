"""YAML text → plain values with their line numbers, and a list of all problems.

Stricter than ``yaml.safe_load``: no tags, duplicate or merge keys, no anchors that contain themselves or repeat too
many values. Scalars follow YAML 1.2: ``1e-3`` is a number, and ``on``, ``off``, ``yes`` and ``no`` are text (a bool
field still accepts them), so that they can be names of levels. Mapping keys are always the text as it is written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

#: Position of a value in the tree: keys of mappings and indices of lists.
Key = tuple[str | int, ...]

#: Assumptions: far above any study that a person writes, far below sizes that cost noticeable time or memory.
MAX_BYTES = 200_000
MAX_DEPTH = 32
MAX_ALIAS_NODES = 10_000
MAX_SHOWN = 100

# YAML 1.2.2, section 10.3.2 (core schema); longer integers stay text, which an int field reads as well.
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
#: Surrogates and NUL (the end of file names), which can be escaped in YAML and are accepted nowhere else.
_UNUSABLE = re.compile("[\0\ud800-\udfff]")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(frozen=True)
class Problem:
    """A problem of the file: place (``study.yaml:12`` or ``--set a=b``), line, key, and text with what to do."""

    where: str
    line: int
    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.text}" if self.key else f"{self.where}: {self.text}"


@dataclass
class Source:
    """A tree of plain values, the place of each value, and the problems found so far."""

    #: Name of the file in messages.
    name: str
    value: Any = None
    #: Key → line (from 1), or the override that put it there.
    places: dict[Key, int | str] = field(default_factory=dict)
    #: Problems as keys of a dict, so that each is stored once, in order.
    _problems: dict[Problem, None] = field(default_factory=dict)

    @property
    def problems(self) -> list[Problem]:
        """All problems, in the order in which they were found."""
        return list(self._problems)

    def report(self, key: Key, text: str) -> None:
        """Add a problem at ``key``, with the line of its nearest ancestor if the key is missing."""
        place = self.place(key)
        line = place if isinstance(place, int) else 0
        where = place if isinstance(place, str) else f"{self.name}:{line}" if line else self.name
        self.add(Problem(where, line, format_key(key), text))

    def add(self, problem: Problem) -> None:
        """Add a problem unless it is already in the list."""
        self._problems[problem] = None

    def place(self, key: Key) -> int | str:
        """Return the line of ``key`` or its nearest known ancestor, or the override that set it; 0 if unknown."""
        for length in range(len(key), -1, -1):
            if key[:length] in self.places:
                return self.places[key[:length]]
        return 0

    def describe_problems(self) -> str:
        """Return one message with the problems in the order of the file, at most ``MAX_SHOWN`` of them."""
        problems = sorted(self.problems, key=lambda problem: problem.line)
        head = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = [f"read the study {self.name}, found {head}:", *map(str, problems[:MAX_SHOWN])]
        if len(problems) > MAX_SHOWN:
            lines.append(f"… and {len(problems) - MAX_SHOWN} more")
        return "\n  ".join(lines)


def format_key(key: Key) -> str:
    """Return a key as the user would write it: ``conditions[0].set``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).removeprefix(".")


def format_value(value: Any) -> str:
    """Return a short text for a value found in a file."""
    if isinstance(value, dict | list | tuple) and value:
        return "a mapping" if isinstance(value, dict) else "a list"
    text = (
        {None: "null", True: "true", False: "false"}[value] if value is None or value is True or value is False else ""
    )
    text = text or repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def resolve_scalar(text: str) -> str | int | float | bool | None:
    """Return the value of an unquoted scalar in YAML 1.2 (octal and hexadecimal stay text)."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return float(text.replace(".", "", 1)) if _SPECIAL.fullmatch(text) else text


def read_yaml(text: str, name: str) -> Source:
    """Return the tree of a YAML text; parts with a problem are in ``problems``, and None or missing in the tree."""
    source = Source(name)
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        source.report((), f"found {len(text):,} characters, expected at most {MAX_BYTES:,} bytes")
        return source
    try:
        root = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        source.places[()] = mark.line + 1 if mark else 0
        found = ", ".join(part for part in (error.context, error.problem) if part)
        source.report((), f"this is not valid YAML: {found}")
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two: an impossible "\U…" escape
        source.report((), f"this is not valid YAML: {' '.join(str(error).split())}")
    else:
        if root is not None:
            source.value = _Builder(source).build(root, ())
    return source


class _Loader(yaml.SafeLoader):
    """Loader whose node tags tell quoted from unquoted scalars. An explicit tag is kept and refused later."""

    depth = 0

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode:
            return "plain" if implicit[0] else "text"
        return "collection"

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Builder:
    """Converter of nodes to plain values that stores the line of each value in ``source``."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.seen: set[int] = set()
        self.open: set[int] = set()
        self.num_repeated = 0

    def build(self, node: yaml.Node, key: Key) -> Any:
        self.source.places.setdefault(key, node.start_mark.line + 1)
        if not self._allowed(node, key):
            return None
        if isinstance(node, yaml.ScalarNode):
            if _UNUSABLE.search(node.value):
                self.source.report(key, f"found {node.value[:60]!a}, expected whole Unicode characters, no NUL")
                return None
            return resolve_scalar(node.value) if node.tag == "plain" else node.value
        self.open.add(id(node))
        value: Any
        if isinstance(node, yaml.MappingNode):
            value = self._mapping(node, key)
        else:
            value = [self.build(item, (*key, index)) for index, item in enumerate(node.value)]
        self.open.discard(id(node))
        return value

    def _allowed(self, node: yaml.Node, key: Key) -> bool:
        self.num_repeated += id(node) in self.seen
        self.seen.add(id(node))
        if node.tag not in ("plain", "text", "collection"):
            self.source.report(key, f"found the tag {node.tag!r}, expected plain YAML without tags")
        elif id(node) in self.open:
            self.source.report(key, "found an anchor that contains itself, expected plain values")
        elif self.num_repeated == MAX_ALIAS_NODES:
            self.source.report(key, f"anchors repeat more than {MAX_ALIAS_NODES:,} values, expected far fewer")
        return (
            node.tag in ("plain", "text", "collection")
            and id(node) not in self.open
            and self.num_repeated < MAX_ALIAS_NODES
        )

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or _UNUSABLE.search(key_node.value):
                self.source.report(key, f"line {line}: found a key that is not text, expected a word")
                continue
            name = key_node.value
            inner = (*key, name)
            if key_node.tag == "plain" and name == "<<":
                self.source.report(key, f"line {line}: found a merge key (<<), expected the keys written out")
            elif name in value:
                first = self.source.places[inner]
                self.source.report(
                    key, f"line {line}: the key {name!r} is there twice, first in line {first}; keep one"
                )
            else:
                self.source.places[inner] = line
                value[name] = self.build(value_node, inner)
        return value


def apply_override(source: Source, override: str) -> None:
    """Set one value of the tree from ``dotted.path=YAML value``; errors are added as problems of the override.

    For keys that contain dots (factors) the longest existing key is used; below ``factors`` the whole rest of the path
    is the name of a new factor. A number selects an item of a list.
    """
    place = f"--set {override.encode('utf-8', 'backslashreplace').decode()}"
    path, equals, text = override.partition("=")
    parsed = read_yaml(text, place)
    for problem in parsed.problems:
        source.add(problem)
    if parsed.problems:
        return
    if not equals or not path.strip() or _UNUSABLE.search(path):
        source.add(Problem(place, 0, "", "expected dotted.path=value, e.g. training.epochs=2"))
        return
    if source.value is None:
        source.value = {}
    rest, key, node = path.strip(), Key(), source.value
    while True:
        part, rest = _next_part(node, key, rest)
        if part is None:
            found = f"found {format_value(node)} at {format_key(key) or 'the top'}, which has nothing called {rest!r}"
            source.add(Problem(place, 0, path.strip(), f"{found}; override the whole of it instead"))
            return
        key = (*key, part)
        if not rest:
            break
        if isinstance(node, dict) and node.get(str(part)) is None:
            node[str(part)] = {}
        node = node[part]
    node[part] = parsed.value
    for old in [old for old in source.places if old[: len(key)] == key]:
        del source.places[old]
    source.places[key] = place


def _next_part(node: Any, key: Key, rest: str) -> tuple[str | int | None, str]:
    """Return the next key of an override's path and the rest of the path, with None as key if ``node`` lacks it."""
    if isinstance(node, list):
        head, _, tail = rest.partition(".")
        return (int(head), tail) if re.fullmatch("[0-9]{1,6}", head) and int(head) < len(node) else (None, rest)
    if not isinstance(node, dict):
        return None, rest
    existing = [name for name in node if rest == name or rest.startswith(f"{name}.")]
    if existing:
        name = max(existing, key=len)
        return name, rest[len(name) + 1 :]
    if key == ("factors",):
        return rest, ""
    head, _, tail = rest.partition(".")
    return head, tail
