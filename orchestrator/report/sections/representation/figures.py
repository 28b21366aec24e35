"""Figures of representations: spectra on logarithmic axes, similarity of arms, similarity to the initial weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Float64

from orchestrator.analysis.predictions.layers import ArmLayers
from orchestrator.analysis.predictions.similarity import ArmSimilarity
from orchestrator.report.style import SEQUENTIAL, Figure, colour, floats, layout_of
from trainables.evaluation.representation.layers import PENULTIMATE

#: Most rows of a heat map whose cells hold numbers.
_ANNOTATED = 16


def draw_spectra(layer: str, arms: Mapping[str, ArmLayers], labels: Mapping[str, str]) -> Figure:
    """Return the eigenvalues of one layer over their rank, a line per arm."""
    data: list[dict[str, Any]] = []
    for index, (name, stored) in enumerate(arms.items()):
        spectrum = stored.spectra.get(layer)
        if spectrum is None:
            continue
        label = escape(labels.get(name, name))
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": label,
                "x": list(spectrum.rank),
                "y": [None if np.isnan(value) else float(f"{value:.5g}") for value in spectrum.relative],
                "line": {"color": colour(index), "width": 2},
                "hovertemplate": f"{label}<br>rank %{{x}}: %{{y:.2e}} of the largest, n = {spectrum.num_trials}"
                "<extra></extra>",
            }
        )
    layout = layout_of(
        xaxis={"type": "log", "title": {"text": "rank"}, "dtick": 1},
        yaxis={"type": "log", "title": {"text": "eigenvalue / largest"}, "exponentformat": "power", "dtick": 1},
    )
    layout["margin"] |= {"t": 24 + 18 * min(len(data), 8)}
    num = next(iter(arms.values()))
    what = "the penultimate features" if layer == PENULTIMATE else f"the channels of {layer}"
    return Figure(
        title="In how many directions do the layers vary?",
        note=(
            f"Eigenvalues of the covariance of {what}, over the largest; geometric mean over replicates, "
            f"{num.num_images} unshifted test images. A line that falls steeply uses few directions; a straight one is "
            "a power law, whose slope is −α."
        ),
        data=data,
        layout=layout,
        height_px=360 + 18 * min(len(data), 8),
        axes=("rank", "eigenvalue"),
    )


def draw_similarity(found: ArmSimilarity, labels: Mapping[str, str]) -> dict[str, Figure]:
    """Return CKA and Procrustes distance between arms, as heat maps by name of the measure."""
    names = [escape(labels.get(arm, arm)) for arm in found.arms]
    left_out = f" {found.num_left_out} more arms are not compared." if found.num_left_out else ""
    shared = (
        " Where two arms, or the trainings of one, all start from one trained step, trainings that share it are "
        "compared, and they are more alike for that."
    )
    note = (
        f"Penultimate features of {found.num_images} unshifted test images, mean over pairs of trained networks of "
        "different replicates and pretrained encoders; on the diagonal two trainings of one arm: arms are only "
        f"different where they are less alike than that.{shared * found.has_shared}{left_out}"
    )
    measures = {
        "CKA": (found.cka, "Unbiased linear CKA, 1 for features that are alike up to rotation and scale. ", (0.0, 1.0)),
        "Procrustes distance": (
            found.procrustes, "Orthogonal Procrustes distance, 0 for features that are alike up to rotation and scale, "
            "2 for unlike ones; it also sees directions of small variance. ", (2.0, 0.0),
        ),
    }  # fmt: skip
    return {
        measure: _heat_map(
            "Have the arms learned the same?",
            text + note,
            values,
            (names, names),
            span=span,
            counts=found.num_pairs.tolist(),
            axes=("arm", "arm", measure),
        )
        for measure, (values, text, span) in measures.items()
    }


def draw_initial(stored: ArmLayers, label: str) -> Figure:
    """Return CKA between layers of the trained networks of an arm and those of their initial weights."""
    layers = [escape(layer) for layer in stored.compared]
    return _heat_map(
        "Which layers has the training changed?",
        f"Arm {label}: unbiased linear CKA of the layers of the trained network (rows) with those of the weights that "
        f"its training started from (columns), means over positions, {stored.num_images} unshifted test images, mean "
        f"over n = {stored.num_trials} trained networks. Low on the diagonal: the layer has changed.",
        stored.cka_initial,
        (layers, layers),
        span=(0.0, 1.0),
        counts=None,
        axes=("initial layer", "trained layer", "CKA"),
    )


def _heat_map(
    title: str,
    note: str,
    values: Float64[np.ndarray, "rows columns"],
    names: tuple[Sequence[str], Sequence[str]],
    *,
    span: tuple[float, float],
    counts: list[list[int]] | None,
    axes: tuple[str, ...],
) -> Figure:
    """Return a heat map in [0, largest], dark where representations are unlike."""
    rows, columns = names
    z = [floats(row) for row in values[::-1]]  # Plotly draws the last row on top
    scale = SEQUENTIAL
    if span[0] > span[1]:
        scale = [[at, hue] for (at, _), (_, hue) in zip(SEQUENTIAL, reversed(SEQUENTIAL), strict=True)]
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": z,
        "x": list(columns),
        "y": list(rows)[::-1],
        "zmin": min(span),
        "zmax": max(span),
        "colorscale": scale,
        "xgap": 2,
        "ygap": 2,
        "hoverongaps": False,
        "colorbar": {"thickness": 10, "outlinewidth": 0},
        "hovertemplate": f"%{{y}}<br>%{{x}}: {axes[-1]} %{{z:.3f}}<extra></extra>",
    }
    if counts is not None:
        trace["customdata"] = [[[count] for count in row] for row in counts[::-1]]
        trace["meta"] = {"columns": ["n"]}
        trace["hovertemplate"] = f"%{{y}}<br>%{{x}}: {axes[-1]} %{{z:.3f}}, n = %{{customdata[0]}} pairs<extra></extra>"
    if len(rows) <= _ANNOTATED:
        text = [["" if value is None else f"{value:.2f}" for value in row] for row in z]
        trace |= {"text": text, "texttemplate": "%{text}", "textfont": {"size": 11}}
    layout = layout_of(
        xaxis={"side": "top", "tickangle": -38, "automargin": True, "showgrid": False, "type": "category"},
        yaxis={"automargin": True, "showgrid": False, "type": "category", "tickfont": {"size": 11.5}},
    )
    layout["margin"] |= {"l": 10, "t": 90, "b": 12}
    return Figure(
        title=title,
        note=note,
        data=[trace],
        layout=layout,
        height_px=150 + max(30 * len(rows), 90),
        min_width_px=160 + 46 * len(columns),
        axes=axes,
    )
