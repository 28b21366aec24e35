"""Heavy work in processes of its own, so that the server holds neither torch nor scikit-learn: half a GiB less.

``python -m orchestrator.explorer.worker`` reads one request per line from standard input. A job answers with lines of
JSON: ``{"share": …}`` and at last ``{"result": …}`` or ``{"error": …}``; a painted image with one line of its size,
then its bytes.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.ledger.ledger import Ledger
from trainables.errors import RobustSweepError


def run_job(request: dict[str, Any], on_progress: Callable[[float], None]) -> Any:
    """Return the result of a job.

    Args:
        request: ``kind`` (prepare, tsne, clusters, cases; of segmentations list_cases, cluster_cases, collect_cases),
            ``storage``, ``study``, ``cache_dir``, and what the kind needs.
        on_progress: callback with the finished share, in [0, 1].

    Raises:
        RobustSweepError: the job cannot be done.
    """
    cache_dir = Path(request["cache_dir"])
    if request["kind"] == "prepare":
        from orchestrator.explorer.prepare import prepare_trial

        ledger = Ledger(request["storage"], request["study"])
        return str(prepare_trial(ledger, request["signature"], cache_dir=cache_dir, on_progress=on_progress))
    if request["kind"] == "list_cases":
        from orchestrator.explorer.segmentation.index import list_cases

        return list_cases(Ledger(request["storage"], request["study"]), request["signature"], cache_dir=cache_dir)
    if request["kind"] == "cluster_cases":
        from orchestrator.explorer.segmentation.groups import cluster_cases

        return cluster_cases(Ledger(request["storage"], request["study"]), request["signature"], cache_dir=cache_dir)
    if request["kind"] == "collect_cases":
        from orchestrator.explorer.segmentation.export import collect_cases

        return collect_cases(Ledger(request["storage"], request["study"]), request["signature"], cache_dir=cache_dir)
    if request["kind"] == "cases":
        return _draw_cases(request, on_progress)
    from orchestrator.explorer.computed import compute

    return compute(request, on_progress)


def _draw_cases(request: dict[str, Any], on_progress: Callable[[float], None]) -> dict[str, Any]:
    """Return what an exported page shows of single cases, as base 64; errors in the place of what cannot be had.

    Args:
        request: ``shifted``, lists of [set, rows, shift], and ``looked``, of [set, rows, classes], with the sides of
            their pictures and the method of the attribution.
        on_progress: callback with the finished share, in [0, 1].
    """
    from orchestrator.explorer.attributions import Attributor
    from orchestrator.explorer.images import Images, encode_thumbnail, paint_shifted

    cache_dir, signature = Path(request["cache_dir"]), request["signature"]
    images = Images(Ledger(request["storage"], request["study"]), cache_dir)
    attributor = Attributor(images, cache_dir)
    found: dict[str, Any] = {}

    def draw_shifted(name: str, rows: list[int], key: str) -> list[bytes]:
        return [encode_thumbnail(each, request["side"]) for each in paint_shifted(images, signature, name, rows, key)]

    def draw_looked(name: str, rows: list[int], targets: list[int]) -> list[bytes]:
        method, side = request["method"], request["looked_side"]
        return attributor.draw_small(signature, name, rows, targets, method=method, side_px=side)

    draws: dict[str, Callable[..., list[bytes]]] = {"shifted": draw_shifted, "looked": draw_looked}
    for share, (kind, draw) in enumerate(draws.items(), 1):
        try:
            drawn = [draw(*part) for part in request[kind]]
            found[kind] = [[base64.b64encode(each).decode() for each in part] for part in drawn]
        except RobustSweepError as error:
            found[f"no_{kind}"] = str(error)
        on_progress(share / len(draws))
    return found


def paint(request: dict[str, Any]) -> bytes:
    """Return a shifted image as PNG, for the kind ``attribute`` what lies over an image, for ``paint_case`` a mask.

    Args:
        request: ``storage``, ``study``, ``signature``, ``cache_dir``, ``set`` and ``row``; then ``shift``, with
            ``side`` or ``method`` and ``target``; or ``panel`` and ``side``.

    Raises:
        RobustSweepError: the image, the shift or the attribution cannot be had here.
    """
    from orchestrator.explorer.attributions import Attributor
    from orchestrator.explorer.images import Images, encode_png, paint_shifted

    ledger, cache_dir = Ledger(request["storage"], request["study"]), Path(request["cache_dir"])
    if ledger.root.uri not in _opened:
        found = Images(ledger, cache_dir)
        _opened[ledger.root.uri] = found, Attributor(found, cache_dir)
    images, attributor = _opened[ledger.root.uri]
    signature, name, row = (request[each] for each in ("signature", "set", "row"))
    if request["kind"] == "paint_case":
        from orchestrator.explorer.segmentation.pictures import draw_panel

        return draw_panel(images, signature, name, row, panel=request["panel"], side_px=request["side"])
    key = request["shift"]
    if request["kind"] == "attribute":
        drawn: bytes = attributor.draw(signature, name, row, key, method=request["method"], target=request["target"])
        return drawn
    return encode_png(paint_shifted(images, signature, name, [row], key)[0], request["side"])


#: Ledger → its images and models, which stay open from one request to the next.
_opened: dict[str, Any] = {}


def _answer(request: dict[str, Any], output: BinaryIO) -> None:
    def say(**values: Any) -> None:
        output.write(json.dumps(values).encode() + b"\n")
        output.flush()

    try:
        if request["kind"] in ("paint", "attribute", "paint_case"):
            image = paint(request)
            say(size=len(image))
            output.write(image)
            output.flush()
        else:
            say(result=run_job(request, lambda share: say(share=share)))
    except RobustSweepError as error:
        say(error=str(error))


def main() -> None:
    """Answer every request of standard input; ends with it."""
    output = sys.stdout.buffer
    sys.stdout = sys.stderr  # what libraries print must not be taken for an answer
    for line in sys.stdin.buffer:
        _answer(json.loads(line), output)


if __name__ == "__main__":
    main()
