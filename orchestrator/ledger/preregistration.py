"""Versions of a study's hypotheses, each with the number of trials that were complete when it was written.

``hypotheses.json`` holds all versions, and ``plan.json`` a copy: each replaces the other where one of them is damaged.
A hypothesis is *preregistered* if it is the same in the last version that was written before a trial was complete. One
that was added or changed later is *exploratory*, and one that is gone is *deleted*.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.study.hypotheses import Hypothesis, compute_hypotheses_sha256, describe_hypothesis
from trainables.storage.folder import Folder

FILE, PLAN = "hypotheses.json", "plan.json"
PREREGISTERED, EXPLORATORY, DELETED = "preregistered", "exploratory", "deleted"


@dataclass(frozen=True)
class Registration:
    """Versions of a study's hypotheses, the last one being that of the study file."""

    versions: tuple[dict[str, Any], ...]
    #: Damage of ``hypotheses.json``, in words.
    damage: str | None
    #: Whether ``hypotheses.json`` holds these versions.
    is_written: bool

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``hypotheses.json``, which ``plan.json`` holds as ``hypotheses``."""
        return {"versions": list(self.versions)}

    def write(self, root: Folder) -> None:
        """Write ``hypotheses.json`` into the folder of the ledger, unless it holds these versions.

        Raises:
            StorageError: the storage refused.
        """
        if not self.is_written:
            root.write_json(FILE, self.as_json())


#: Registration of a study that never had hypotheses.
EMPTY_REGISTRATION = Registration((), None, is_written=True)


def update_registration(
    root: Folder, hypotheses: Sequence[Hypothesis], count_complete: Callable[[], int]
) -> Registration:
    """Return the versions registered so far, and the current hypotheses as a new version if they differ.

    Args:
        root: folder of the ledger.
        hypotheses: hypotheses of the study file.
        count_complete: returns the number of complete trials; called only if there is a new version.

    Raises:
        StorageError: the ledger cannot be read.
    """
    known, damage = _read(root)
    is_written = damage is None and root.exists(FILE)
    contents = [describe_hypothesis(hypothesis) for hypothesis in hypotheses]
    digest = compute_hypotheses_sha256(contents)
    if known[-1]["sha256"] != digest if known else contents:
        version = {
            "registered_ms": int(time.time() * 1000),
            "num_complete": count_complete(),
            "sha256": digest,
            "hypotheses": contents,
            # The versions before are lost: whether there were any is not known.
            "after_damage": damage is not None and not known,
        }
        return Registration((*known, version), damage, is_written=False)
    return Registration(tuple(known), damage, is_written or (not known and damage is None))


def _read(root: Folder) -> tuple[list[dict[str, Any]], str | None]:
    """Return the known versions, and the damage of ``hypotheses.json`` in words."""
    if root.is_intact(FILE):
        return list(root.read_json(FILE)["versions"]), None
    versions = read_versions(root.read_json(PLAN)) if root.is_intact(PLAN) else []
    if root.exists(FILE):
        instead = f"taken from {PLAN}" if versions else "what was registered before is lost"
        return versions, f"{root.uri}/{FILE} is damaged or was changed by hand; {instead}"
    return versions, f"{root.uri}/{FILE} is missing; taken from {PLAN}" if versions else None


@dataclass(frozen=True)
class Registered:
    """One hypothesis with its history."""

    #: Result of ``describe_hypothesis`` for it: now, or before it was deleted.
    content: dict[str, Any]
    #: preregistered, exploratory, deleted.
    status: str
    #: Time at which this content was written, or at which it was deleted.
    since_ms: int
    #: Number of trials that were complete then.
    num_complete: int
    #: Earlier content, if it was changed.
    before: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Name of the hypothesis."""
        return str(self.content["name"])

    @property
    def remark(self) -> str:
        """Reason for the status, in words."""
        trials = f"{self.num_complete} trial{'s were' if self.num_complete != 1 else ' was'} complete"
        if self.status == PREREGISTERED:
            return f"written on {format_time(self.since_ms)}, before any trial was complete"
        if self.status == DELETED:
            return f"deleted on {format_time(self.since_ms)}, when {trials}"
        return f"{'changed' if self.before else 'added'} on {format_time(self.since_ms)}, when {trials}"

    @property
    def changes(self) -> list[str]:
        """Differences from the earlier content, field by field, with both values."""
        before = self.before or {}
        keys = [*self.content, *(key for key in before if key not in self.content)]
        return [
            f"{key}: {_show(before.get(key))} → {_show(self.content.get(key))}"
            for key in keys
            if before and before.get(key) != self.content.get(key)
        ]


def _show(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_show(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_show, value))
    return "none" if value is None else str(value)


def format_time(moment_ms: int) -> str:
    """Return a moment as text, in UTC and to the minute."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(moment_ms / 1000))


def trace_hypotheses(versions: Sequence[Mapping[str, Any]]) -> list[Registered]:
    """Return the hypotheses of the last version in its order, then the deleted ones, each with its status."""
    if not versions:
        return []
    named = [{content["name"]: content for content in version["hypotheses"]} for version in versions]
    num_early = _count_early(versions)
    promised = named[num_early - 1] if num_early else {}
    found = [_trace(content, named, versions, promised.get(name)) for name, content in named[-1].items()]
    late = named[max(0, num_early - 1) :]
    gone = {name: content for contents in late for name, content in contents.items() if name not in named[-1]}
    for name, content in gone.items():
        left = max(number for number, contents in enumerate(named) if name in contents) + 1
        found.append(Registered(content, DELETED, versions[left]["registered_ms"], versions[left]["num_complete"]))
    return found


def _trace(
    content: dict[str, Any],
    named: Sequence[Mapping[str, Any]],
    versions: Sequence[Mapping[str, Any]],
    promised: dict[str, Any] | None,
) -> Registered:
    name = content["name"]
    since = len(named) - 1
    while since and named[since - 1].get(name) == content:
        since -= 1
    if promised == content:
        first = next(number for number, contents in enumerate(named) if contents.get(name) == content)
        return Registered(content, PREREGISTERED, versions[first]["registered_ms"], 0)
    earlier = [contents[name] for contents in named[:since] if name in contents]
    before = promised or (earlier[-1] if earlier else None)
    version = versions[since]
    return Registered(content, EXPLORATORY, version["registered_ms"], version["num_complete"], before)


def read_versions(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the versions in the content of ``plan.json``, none if it was written before hypotheses existed."""
    return list(plan.get("hypotheses", {"versions": []})["versions"])


def list_preregistered(versions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the hypotheses of the last version that was written before a trial was complete."""
    num_early = _count_early(versions)
    return list(versions[num_early - 1]["hypotheses"]) if num_early else []


def _count_early(versions: Sequence[Mapping[str, Any]]) -> int:
    """Return how many versions were written before the first one with a complete trial.

    A later version without any complete trial (the ledger was emptied) is late all the same.
    """
    late = (number for number, version in enumerate(versions) if version["num_complete"])
    return next(late, len(versions))
