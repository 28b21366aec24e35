"""Shifts that a training's augmentation contains (*seen*), and shifts that were *used for selection*.

A shift counts as seen if the policy has an operation of the same kind, even with another kernel or distribution
(uniform noise for Gaussian noise, erased rectangles for overlays): what is called unseen has to be so beyond doubt. A
shift counts as used for selection if it, or another one of its kind, was applied to validation images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainables.shifts.tables import find_type

#: Kind of change → shifts of the bank. Kinds that no policy has (weather, pixels, stains) are not listed.
KINDS: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    "blur": ("gaussian_blur", "defocus_blur", "motion_blur", "glass_blur", "zoom_blur"),
    "brightness": ("brightness_up", "brightness_down", "brightness"),
    "contrast": ("contrast_up", "contrast_down", "contrast"),
    "gamma": ("gamma_up", "gamma_down"),
    "saturation": ("saturation", "saturate"),
    "jpeg": ("jpeg",),
    "geometry": ("elastic_transform",),
    "overlay": ("stain_deposit", "bubble", "black_corner", "characters"),
}
#: Operation of a policy → kind. Sharpness below 1 smooths; the operations left out resemble no shift of the bank.
OPERATION_KINDS = {
    "noise": "noise", "blur": "blur", "sharpness": "blur", "brightness": "brightness", "contrast": "contrast",
    "autocontrast": "contrast", "equalize": "contrast", "gamma": "gamma", "tone": "gamma", "saturation": "saturation",
    "grayscale": "saturation", "jpeg": "jpeg", "shear_x": "geometry", "shear_y": "geometry",
    "translate_x": "geometry", "translate_y": "geometry", "rotate": "geometry",
}  # fmt: skip
#: Policy → kinds of change among its operations; contrastive: of MoCo v2's views in pretraining.
POLICIES: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "randaugment": frozenset({"brightness", "saturation", "contrast", "blur", "geometry"}),
    "trivialaugment": frozenset({"brightness", "saturation", "contrast", "blur", "geometry"}),
    "contrastive": frozenset({"brightness", "saturation", "contrast", "blur"}),
    "contrastive_no_colour": frozenset({"brightness", "contrast", "blur"}),
    "augmix": frozenset({"contrast", "geometry"}),
    "strong-v0.1.0": frozenset({"brightness", "saturation", "contrast", "gamma", "blur", "noise", "jpeg"}),
    "strong-v1": frozenset({"brightness", "saturation", "contrast", "gamma", "blur", "geometry"}),
}

_KIND_OF_SHIFT = {shift: kind for kind, shifts in KINDS.items() for shift in shifts}


def find_policy(augmentation: Mapping[str, Any]) -> str:
    """Return the name of an augmentation's policy in ``POLICIES``.

    Args:
        augmentation: the section ``augmentation`` of a trial's config, as JSON.
    """
    return str(augmentation["policy"] if augmentation["kind"] == "strong" else augmentation["kind"])


def list_seen_kinds(augmentation: Mapping[str, Any]) -> frozenset[str]:
    """Return the kinds of change that an augmentation contains; none at strength 0.

    Args:
        augmentation: the section ``augmentation`` of a trial's config, as JSON.
    """
    kinds = POLICIES[find_policy(augmentation)] if augmentation.get("strength", 1.0) > 0 else frozenset()
    return kinds | {"overlay"} if augmentation.get("erasing", 0.0) > 0 else kinds


def list_kinds_in_training(config: Mapping[str, Any]) -> frozenset[str]:
    """Return the kinds of change that a trial's training contains, in any contrastive step of its chain too.

    Args:
        config: config of the trial, as JSON.
    """
    kinds, step = list_seen_kinds(config["augmentation"]), config["pretraining"]
    while step is not None:
        kinds |= list_kinds_in_views(step) if step["kind"] == "contrastive" else frozenset()
        step = step.get("init")
    return kinds


def list_kinds_in_views(pretraining: Mapping[str, Any]) -> frozenset[str]:
    """Return the kinds of change that the views of a contrastive pretraining contain.

    Args:
        pretraining: the pretraining's config, as JSON.
    """
    views = pretraining.get("views", {"kind": "moco"})  # ledgers from before there was a choice
    if views["kind"] == "strong":
        return POLICIES[views["policy"]]
    return POLICIES["contrastive_no_colour" if views["kind"] == "no_colour" else "contrastive"]


def list_seen(names: Iterable[str], config: Mapping[str, Any]) -> frozenset[str]:
    """Return those of the shifts ``names`` that a trial's training has seen, in contrastive pretraining too.

    A composition is seen if one of its parts is. Shifts of packages count as unseen.

    Args:
        names: names of evaluated shifts.
        config: config of the trial, as JSON.
    """
    kinds, own = list_kinds_in_training(config), _find_own(config["evaluation"]["shifts"])
    return frozenset(name for name in names if any(kind in kinds for kind in _find_kinds(name, own)))


def list_used(names: Iterable[str], applied: Iterable[str], config: Mapping[str, Any]) -> frozenset[str]:
    """Return those of the shifts ``names`` that count as used for selection.

    Those that were applied to validation images, and those that share a kind or an operation with one of them. A
    composition shares what its parts do.

    Args:
        names: names of shifts of the test set.
        applied: names of shifts that were applied to validation images.
        config: config of the trial, as JSON.
    """
    own = _find_own(config["evaluation"]["shifts"])
    used = {kind for name in applied for kind in _find_kinds(name, own)}
    return frozenset(name for name in names if not used.isdisjoint(_find_kinds(name, own)))


def _find_own(entries: str | Iterable[Any]) -> dict[str, Mapping[str, Any]]:
    return {entry["name"]: entry for entry in entries if isinstance(entry, dict) and "name" in entry}


def _find_kinds(name: str, own: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    """Return the kinds of the parts of a shift; ``shift/<type>`` for a part without one."""
    entry = own.get(name, {})
    if "op" in entry:
        operation = str(entry["op"])
        found = OPERATION_KINDS if operation.startswith("strong_") else _KIND_OF_SHIFT
        operation = operation.removeprefix("strong_")
        return [found.get(operation, f"shift/{operation}")]
    parts = entry.get("compose") or (name.split("_then_") if "_then_" in name else [])
    if parts:
        stems = [str(part).partition("/")[0].rstrip("0123456789") for part in parts]
        return [kind for stem in stems for kind in _find_kinds(stem, own)]
    return [_KIND_OF_SHIFT.get(name, f"shift/{find_type(name)}")]
