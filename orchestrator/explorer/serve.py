"""Serves the explorer of a study until Ctrl-C."""

from __future__ import annotations

import contextlib
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn

from orchestrator.explorer.classification.app import build_classification_app
from orchestrator.explorer.guard import make_door
from orchestrator.explorer.segmentation.app import build_segmentation_app
from orchestrator.explorer.study import ExploredStudy
from trainables.errors import StudyError


@dataclass(frozen=True)
class Served:
    """A server that answers."""

    #: Address to open, with the token if there is one.
    url: str
    stop: Callable[[], None]
    wait: Callable[[], None]


@contextlib.contextmanager
def serve(explored: ExploredStudy, *, host: str = "127.0.0.1", port: int | None = None) -> Iterator[Served]:
    """Yield a server of a study, in a thread; it stops with the block.

    Args:
        explored: the study.
        host: address to bind; any but this machine's own needs the token that is in ``url``.
        port: port; None for a free one.

    Raises:
        StudyError: the address or port cannot be bound.
    """
    door = make_door(host)
    listening = _bind(host, port)
    build = build_segmentation_app if explored.is_segmentation else build_classification_app
    config = uvicorn.Config(build(explored, door), log_level="warning", access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    number = listening.getsockname()[1]
    shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    shown = f"[{shown}]" if ":" in shown else shown
    url = f"http://{shown}:{number}/" + (f"?token={door.token}" if door.token else "")

    def stop() -> None:
        server.should_exit = True

    try:
        yield Served(url, stop, thread.join)
    finally:
        stop()
        thread.join(10)
        listening.close()
        explored.close()


def _bind(host: str, port: int | None) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port or 0))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise StudyError(
            f"could not serve on {host}, port {port or 'any'} ({error}); choose another --host or --port"
        ) from error
    return listening


def open_page(url: str) -> Any:
    """Open a page in the user's browser, if there is one."""
    return webbrowser.open(url)
