"""The page and one trial's data as a single file that asks nobody: from a disk, or in MLflow's artifact viewer."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.explorer.app import MODULES, read_static
from orchestrator.explorer.prepared import NO_LABEL, Index, Prepared, SetIndex
from orchestrator.explorer.study import ExploredStudy
from trainables.errors import RobustSweepError, StorageError
from trainables.evaluation.classification import compute_log_softmax

#: Images in a file unless more of them are wrong; a random part of those that are right everywhere is left out.
MAX_IMAGES = 4_000
#: Points in a file with shifts; beyond, it holds the unshifted images alone.
MAX_POINTS = 150_000
#: Side of the thumbnails, px: 1 to 2 KB each.
THUMBNAIL_PX = 64
#: Classes of an image's distribution that are in the file.
_MOST_CLASSES = 5
#: What the page may load: itself.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' data:; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Exported:
    """A written file."""

    path: Path
    num_bytes: int
    #: What is not in it, in words; None if all of the trial is.
    left_out: str | None


@dataclass(frozen=True)
class _Part:
    """Part of one set that is in the file."""

    old: SetIndex
    new: SetIndex
    #: Rows of the kept images.
    rows: np.ndarray

    @property
    def points(self) -> np.ndarray:
        """Numbers of the kept points in the whole trial."""
        starts = self.old.first_point + np.arange(len(self.new.shifts)) * self.old.count
        return (starts[:, None] + self.rows).ravel()


def export_page(explored: ExploredStudy, number: int, path: Path) -> Exported:
    """Write one trial as a page.

    Args:
        explored: the study; the trial is prepared if it is not.
        number: number of the trial.
        path: file to write.

    Raises:
        RobustSweepError: the trial cannot be prepared.
        StorageError: the file cannot be written.
    """
    prepared = explored.prepare_now(number)
    parts, left_out = _choose(prepared)
    content = _collect(explored, number, prepared, parts, left_out)
    page = _render(content).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(page)
    except OSError as error:
        raise StorageError(f"could not write {path}: {error}; choose another --export") from error
    return Exported(path.absolute(), len(page), left_out)


def _choose(prepared: Prepared, *, seed: int = 0) -> tuple[list[_Part], str | None]:
    """Return what is in the file, and in words what is not: every image that is ever wrong is in it."""
    sets = [each for each in prepared.index.sets if each.name != "train"]
    num_points = sum(each.count * len(each.shifts) for each in sets)
    with_shifts = num_points <= MAX_POINTS
    labels, predicted = prepared.array("labels"), prepared.array("predicted")
    wrong, right = [], []
    for each in sets:
        shifts = len(each.shifts) if with_shifts else 1
        points = slice(each.first_point, each.first_point + shifts * each.count)
        is_wrong = (labels[points] != predicted[points]) & (labels[points] != NO_LABEL)
        is_wrong = is_wrong.reshape(shifts, each.count).any(axis=0)
        wrong.append(np.flatnonzero(is_wrong))
        right.append(np.flatnonzero(~is_wrong))
    room = max(0, MAX_IMAGES - sum(map(len, wrong)))
    total_right = sum(map(len, right))
    share = min(1.0, room / total_right) if total_right else 1.0
    generator = np.random.default_rng(seed)
    parts: list[_Part] = []
    first_image = first_point = 0
    for each, bad, good in zip(sets, wrong, right, strict=True):
        kept = good if share == 1.0 else generator.choice(good, int(share * len(good)), replace=False)
        rows = np.sort(np.concatenate([bad, kept])).astype(np.int64)
        shifts_kept = each.shifts if with_shifts else each.shifts[:1]
        placed = tuple(shift for shift in each.placed if shift in shifts_kept)
        new = replace(
            each, number=len(parts), count=len(rows), shifts=shifts_kept, placed=placed,
            first_image=first_image, first_point=first_point,
        )  # fmt: skip
        parts.append(_Part(each, new, rows))
        first_image += len(rows)
        first_point += len(rows) * len(shifts_kept)
    return parts, _describe_left_out(first_image, sum(each.count for each in sets), with_shifts)


def _describe_left_out(kept: int, total: int, with_shifts: bool) -> str | None:
    said = []
    if kept < total:
        said.append(f"{kept:,} of {total:,} images: all that are ever wrong, and a random part of the others")
    if not with_shifts:
        said.append("unshifted images alone")
    if not said:
        return None
    rates = "; error rates in it are not those of the whole sets" if kept < total else ""
    return f"This file holds {', '.join(said)}{rates}."


def _collect(
    explored: ExploredStudy, number: int, prepared: Prepared, parts: Sequence[_Part], left_out: str | None
) -> dict[str, Any]:
    """Return everything that the page shows, arrays in base 64."""
    index = replace(
        prepared.index,
        sets=tuple(part.new for part in parts),
        problems=(*prepared.index.problems, *([left_out] if left_out else [])),
    )
    points = np.concatenate([part.points for part in parts])
    images = np.concatenate([part.old.first_image + part.rows for part in parts])
    trial = explored.trials[number]
    arrays = {name: _pack(prepared.array(name)[points]) for name in ("labels", "predicted", "pca")}
    arrays |= {f"score/{k}": _pack(prepared.array(f"score-{k}")[points]) for k in range(len(index.scores))}
    arrays |= {f"column/{k}": _pack(prepared.array(f"column-{k}")[images]) for k in range(len(index.columns))}
    clusters = _read_clusters(explored, number, prepared)
    if clusters is not None:
        arrays["clusters"] = _pack(prepared.array("clusters")[points])
    if prepared.has("tsne"):
        arrays["tsne"] = _pack(prepared.array("tsne")[points])
    return {
        "study": {
            "study": explored.ledger.study,
            "question": explored.plan["question"],
            "trials": [vars(trial) | {"number": 0}],
            "first": 0,
        },
        "index": index.as_json(),
        "arrays": arrays,
        "clusters": clusters,
        "ids": [prepared.ids[image] for image in images],
        "thumbnails": _draw_thumbnails(explored, number, parts),
        "left_out": left_out,
    } | _describe_predictions(prepared, parts, index)


def _read_clusters(explored: ExploredStudy, number: int, prepared: Prepared) -> Any:
    try:
        explored.compute_now(number, "clusters")
    except RobustSweepError as error:
        return {"problem": str(error)}
    return json.loads((prepared.folder / "clusters.json").read_bytes())


def _describe_predictions(prepared: Prepared, parts: Sequence[_Part], index: Index) -> dict[str, str]:
    """Return the largest probability of every point, and the first classes of every unshifted image."""
    size = min(_MOST_CLASSES, len(index.classes))
    top, codes, shares = [], [], []
    for part in parts:
        logits = prepared.array(f"logits-{part.old.number}")
        for position in range(len(part.new.shifts)):
            probabilities = np.exp(compute_log_softmax(np.asarray(logits[position][part.rows], dtype=np.float64)))
            top.append(np.rint(255 * probabilities.max(axis=1)).astype(np.uint8))
            if position == 0:
                order = np.argsort(-probabilities, axis=1, kind="stable")[:, :size]
                codes.append(order.astype(np.uint16))
                shares.append(np.take_along_axis(probabilities, order, axis=1).astype(np.float32))
    return {
        "top": _pack(np.concatenate(top)),
        "distribution_codes": _pack(np.concatenate(codes)),
        "distribution_shares": _pack(np.concatenate(shares)),
    }


def _draw_thumbnails(explored: ExploredStudy, number: int, parts: Sequence[_Part]) -> list[str]:
    """Return one small image each, a JPEG in base 64; "" where a set's images are not on this machine."""
    from PIL import Image

    signature, drawn = explored.find(number).signature, []
    for part in parts:
        images = explored.images.open_set(signature, part.old.name).images if part.old.has_images else None
        for row in part.rows:
            if images is None:
                drawn.append("")
                continue
            pixels = np.asarray(images[row])
            picture = Image.fromarray(pixels[0] if pixels.shape[0] == 1 else np.moveaxis(pixels, 0, 2))
            picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            buffer = BytesIO()
            picture.save(buffer, format="JPEG", quality=80)
            drawn.append(base64.b64encode(buffer.getvalue()).decode())
    return drawn


def _pack(array: np.ndarray) -> str:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return base64.b64encode(np.ascontiguousarray(little).tobytes()).decode()


def _render(content: dict[str, Any]) -> str:
    """Return the page with its modules, style and data inside."""
    modules = {
        f"explorer/{name}": "data:text/javascript;base64," + base64.b64encode(read_static(name).encode()).decode()
        for name in MODULES
    }
    data = json.dumps(content, ensure_ascii=True).replace("<", "\\u003c")  # "</script>" must not end it
    page = read_static("index.html")
    style = '<link rel="stylesheet" href="./static/explorer.css">'
    entry = '<script type="module" src="./static/app.js"></script>'
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    page = page.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n{policy}')
    page = page.replace(style, f"<style>\n{read_static('explorer.css')}</style>")
    page = page.replace("IMPORT_MAP", json.dumps({"imports": modules}))
    return page.replace(
        entry,
        f'<script type="application/json" id="embedded">{data}</script>\n'
        '<script type="module">import "explorer/app.js";</script>',
    )
