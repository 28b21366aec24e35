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
        request: ``kind`` (prepare, tsne, clusters or thumbnails), ``storage``, ``study``, ``cache_dir``, and what the
            kind needs.
        on_progress: callback with the finished share, in [0, 1].

    Raises:
        RobustSweepError: the job cannot be done.
    """
    cache_dir = Path(request["cache_dir"])
    if request["kind"] == "prepare":
        from orchestrator.explorer.prepare import prepare_trial

        ledger = Ledger(request["storage"], request["study"])
        return str(prepare_trial(ledger, request["signature"], cache_dir=cache_dir, on_progress=on_progress))
    if request["kind"] == "thumbnails":
        return _draw_thumbnails(request, on_progress)
    from orchestrator.explorer.computed import compute

    return compute(request, on_progress)


def _draw_thumbnails(request: dict[str, Any], on_progress: Callable[[float], None]) -> list[list[str]]:
    """Return small images, JPEG in base 64: one list for each of ``parts``, which are [set, rows, shift]."""
    from orchestrator.explorer.images import Images, encode_thumbnail, paint_shifted

    images = Images(Ledger(request["storage"], request["study"]), Path(request["cache_dir"]))
    drawn = []
    for number, (name, rows, key) in enumerate(request["parts"]):
        pictures = paint_shifted(images, request["signature"], name, rows, key)
        drawn.append([base64.b64encode(encode_thumbnail(each, request["side"])).decode() for each in pictures])
        on_progress((number + 1) / len(request["parts"]))
    return drawn


def paint(request: dict[str, Any]) -> bytes:
    """Return a shifted image as PNG, or for the kind ``attribute`` what lies over an image.

    Args:
        request: ``storage``, ``study``, ``signature``, ``cache_dir``, ``set``, ``row`` and ``shift``, then ``side`` or
            ``method`` and ``target``.

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
    signature, name, row, key = (request[each] for each in ("signature", "set", "row", "shift"))
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
        if request["kind"] in ("paint", "attribute"):
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
