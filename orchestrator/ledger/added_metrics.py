"""Metrics that were added to a complete trial later, from its stored predictions: ``added/<signature>.json`` beside it.

The trial's own files never change. A file is written once, by the holder of the lease.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from trainables.errors import ConfigError
from trainables.frozen import canonical_json
from trainables.storage.completeness import RESULT
from trainables.storage.folder import Folder

ADDED = "added"
#: Increase it when the definition of an added metric changes.
VERSION = 1
_LENGTH = 16


def sign_request(trial: str, request: Mapping[str, Any]) -> str:
    """Return the signature of a request for metrics of one trial: 16 hex digits of its hash.

    Args:
        trial: signature of the trial.
        request: what is computed, as JSON values.
    """
    text = canonical_json([VERSION, trial, request])
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]


def has_added(folder: Folder, signature: str) -> bool:
    """Return whether the folder of a trial holds the intact answer to a request."""
    return folder.is_intact(f"{ADDED}/{signature}.json")


def write_added(folder: Folder, signature: str, content: Mapping[str, Any]) -> None:
    """Write the answer to a request into the folder of a trial.

    Args:
        folder: folder of the trial.
        signature: result of ``sign_request``.
        content: answer; ``metrics`` holds name → value of the headline numbers.
    """
    folder.write_json(
        f"{ADDED}/{signature}.json", {**content, "signature": signature, "finished_ms": int(time.time() * 1000)}
    )


def read_added(folder: Folder) -> tuple[dict[str, Any], ...]:
    """Return the answers in the folder of a trial, the oldest first, without damaged ones."""
    names = sorted(f"{ADDED}/{name}" for name in (folder / ADDED).children() if name.endswith(".json"))
    found = [folder.read_json(name) for name in names if folder.is_intact(name)]
    return tuple(sorted(found, key=lambda each: (each["finished_ms"], each["signature"])))


def check_label_maps(folder: Folder, label_maps: Mapping[str, Mapping[str, str | None]]) -> set[str]:
    """Return the names of the label maps that a complete trial has numbers of.

    Args:
        folder: folder of the trial.
        label_maps: ``evaluation.label_maps`` of the study as it is now.

    Raises:
        ConfigError: the trial has numbers of another map with one of these names.
    """
    stored = dict(folder.read_json(RESULT).get("label_maps", {}))
    for each in read_added(folder):
        stored |= each.get("label_maps", {})
    for name, merged in label_maps.items():
        if name in stored and stored[name]["merged"] != dict(merged):
            raise ConfigError(
                f"evaluation.label_maps.{name}: found {dict(merged)}, and the trial in {folder.uri} was evaluated with "
                f"another map of this name, {stored[name]['merged']}; expected that one, or give the new one another "
                "name"
            )
    return set(stored)


def merge_metrics(result: Mapping[str, Any], added: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the content of ``result.json`` with the added metrics; of a name that is there twice the first counts."""
    metrics: dict[str, float] = dict(result["metrics"])
    for each in added:
        metrics = {**each["metrics"], **metrics}
    return {**result, "metrics": metrics}
