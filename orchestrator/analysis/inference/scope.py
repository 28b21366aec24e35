"""Scope of a statement about trained models: number of models, split, patients, sites, pretrained encoders."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.analysis.wording import plural
from orchestrator.study.hypotheses import split_metric
from trainables.evaluation.metric_tables.views import split_view

_SETS = {"val": "validation", "test": "test"}


@dataclass(frozen=True)
class Scope:
    """Numbers that a statement rests on. None: the plan does not record it."""

    #: Number of trained models whose results are compared.
    num_models: int
    #: Number of independently pretrained encoders that they started from, by stages of the study; 0 without any.
    num_encoders: int
    #: Name of the set of images in words, e.g. "test".
    images: str | None = None
    num_images: int | None = None
    num_patients: int | None = None
    num_sites: int | None = None
    #: Whether every replicate has a split of its own.
    has_own_splits: bool | None = None
    num_data_sets: int = 1
    #: What has to be said of the pretraining of the compared models, as phrases.
    remarks: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the scope as a phrase, e.g. "24 trained models, 1,797 test images, for this split"."""
        parts = [plural(self.num_models, "trained model")]
        if self.num_encoders:
            parts.append(plural(self.num_encoders, "independent encoder"))
        if self.num_data_sets > 1:
            parts.append(plural(self.num_data_sets, "data set"))
        if self.num_images is not None:
            parts.append(f"{self.num_images:,} {self.images} images" + self._describe_origin())
        if self.has_own_splits is not None:
            parts.append("a split of these images per replicate" if self.has_own_splits else "for this split")
        return "; ".join([", ".join(parts), *self.remarks])

    def _describe_origin(self) -> str:
        origin = "" if self.num_patients is None else f" of {plural(self.num_patients, 'patient')}"
        if self.num_sites is not None:
            origin += f" at {plural(self.num_sites, 'site')}"
        return origin


def find_scope(
    plan: Mapping[str, Any],
    metric: str,
    *,
    num_models: int,
    num_encoders: int,
    external: Mapping[str, int],
    data_sets: Collection[str] = (),
    remarks: tuple[str, ...] = (),
) -> Scope:
    """Return the scope of a statement about one metric.

    Args:
        plan: content of ``plan.json``, or of results from elsewhere, which have no ``data``.
        metric: metric of a hypothesis.
        num_models: number of trained models that are compared.
        num_encoders: number of pretrained encoders behind them.
        external: external set → number of its images, of all that trials were evaluated on. Where sites are left out
            one at a time, the plan does not describe them.
        data_sets: labels of the compared arms' data sets, of a study on several.
        remarks: what has to be said of the pretraining of the compared models.
    """
    known = plan.get("data_sets", {})
    compared = [known[label] for label in data_sets if label in known]
    if len(compared) > 1:
        return _add_up(
            [
                find_scope(
                    {"data": each, "base": plan.get("base")},
                    metric,
                    num_models=num_models,
                    num_encoders=num_encoders,
                    external={name: count for name, count in external.items() if name in each["num_images"]},
                    remarks=remarks,
                )
                for each in compared
            ]
        )
    data = compared[0] if compared else plan.get("data")
    if data is None:
        return Scope(num_models, num_encoders, remarks=remarks)
    metric = split_view(metric)[1]
    kind, name, _ = split_metric(metric)
    if kind == "external" or (kind == "dataset" and name in data["num_images"]):
        sets = [name]
    elif kind == "dataset":  # its part of the test set
        part = data.get("components", {}).get(name, {})
        return Scope(
            num_models,
            num_encoders,
            images=f"test ({name})",
            num_images=part.get("num_images"),
            num_patients=part.get("num_patients"),
            has_own_splits=_has_own_splits(plan),
            remarks=remarks,
        )
    elif metric.startswith("external/"):  # a mean over all of them
        sets = list(external)
    else:
        sets = ["val" if metric.startswith(("val/", "validation/")) else "test"]
    # Plans of older versions lack these.
    patients, sites = data.get("num_patients"), data.get("num_sites", {})
    is_external, images = metric.startswith("external/"), data["num_images"] | external
    return Scope(
        num_models,
        num_encoders,
        images="external" if is_external and kind != "external" else _SETS.get(sets[0], sets[0]),
        num_images=sum(images.get(each, 0) for each in sets),
        num_patients=sum(patients[each] for each in sets) if patients and patients.keys() >= set(sets) else None,
        num_sites=len(sets) if is_external else sites.get(sets[0]),
        has_own_splits=_has_own_splits(plan),
        remarks=remarks,
    )


def _has_own_splits(plan: Mapping[str, Any]) -> bool | None:
    """Return whether every replicate has a split of its own, None if the plan does not record it."""
    base = plan.get("base")
    return None if base is None else base["data"].get("split") == "per_replicate"


def _add_up(scopes: Sequence[Scope]) -> Scope:
    """Return the scope of a statement over several data sets: images, patients and sites of all."""
    return replace(
        scopes[0],
        num_data_sets=len(scopes),
        num_images=_sum([each.num_images for each in scopes]),
        num_patients=_sum([each.num_patients for each in scopes]),
        num_sites=_sum([each.num_sites for each in scopes]),
    )


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
