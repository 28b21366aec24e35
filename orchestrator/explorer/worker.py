"""Heavy work in processes of its own, so that the server holds neither torch nor scikit-learn: half a GiB less.

``python -m orchestrator.explorer.worker`` reads one request per line from standard input. A job answers with lines of
JSON: ``{"share": …}`` and at last ``{"result": …}`` or ``{"error": …}``; a painted image with one line of its size,
then its bytes.
"""

from __future__ import annotations

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
        request: ``kind`` (prepare, tsne or clusters), ``storage``, ``study``, ``cache_dir``, and what the kind needs.
        on_progress: callback with the finished share, in [0, 1].

    Raises:
        RobustSweepError: the job cannot be done.
    """
    cache_dir = Path(request["cache_dir"])
    if request["kind"] == "prepare":
        from orchestrator.explorer.prepare import prepare_trial

        ledger = Ledger(request["storage"], request["study"])
        return str(prepare_trial(ledger, request["signature"], cache_dir=cache_dir, on_progress=on_progress))
    from orchestrator.explorer.computed import compute

    return compute(request, on_progress)


def paint(request: dict[str, Any]) -> bytes:
    """Return a shifted image as PNG.

    Args:
        request: ``storage``, ``study``, ``signature``, ``cache_dir``, ``set``, ``row``, ``shift`` and ``side``.

    Raises:
        RobustSweepError: the image or the shift cannot be had here.
    """
    from orchestrator.explorer.images import Images, encode_png, paint_shifted

    ledger = Ledger(request["storage"], request["study"])
    images = _opened.setdefault(ledger.root.uri, Images(ledger, Path(request["cache_dir"])))
    pixels = paint_shifted(images, request["signature"], request["set"], request["row"], request["shift"])
    return encode_png(pixels, request["side"])


_opened: dict[str, Any] = {}


def _answer(request: dict[str, Any], output: BinaryIO) -> None:
    def say(**values: Any) -> None:
        output.write(json.dumps(values).encode() + b"\n")
        output.flush()

    try:
        if request["kind"] == "paint":
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
