"""Command ``robustsweep top``: which stages and trials run where, and how far the study is, read from the ledger."""

from __future__ import annotations

import json
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, Overrides, Storage, StudyOrName
from orchestrator.driver.terminal.echo import echo

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.cli.cluster.frame import FrameReader


def top(
    study: StudyOrName,
    storage: Storage = None,
    overrides: Overrides = None,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
    interval: Annotated[float, typer.Option(min=0.2, max=3600.0, help="Seconds between two frames.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Watch a study: who runs where, utilisation, time left, cost, last failures. From any machine; q ends it."""
    from orchestrator.cli.cluster.frame import FrameReader
    from orchestrator.cli.cluster.frame_text import render_frame
    from orchestrator.cli.lookup import open_study
    from orchestrator.driver.terminal.console import PrintableConsole

    loaded = open_study(study, storage=storage, overrides=overrides or ())
    reader, console = FrameReader(loaded, storage=storage or loaded.execution.storage), PrintableConsole()
    if as_json:
        echo(json.dumps(reader.read()))
    elif once or not console.is_terminal:
        console.print(render_frame(reader.read(), width=console.width))
    else:
        _watch(reader, console, interval=interval)


def _watch(reader: FrameReader, console: Console, *, interval: float) -> None:
    """Draw a frame every ``interval`` seconds on the whole terminal, until q or Ctrl-C."""
    from rich.live import Live

    from orchestrator.cli.cluster.frame_text import render_frame

    with suppress(KeyboardInterrupt), reading_keys() as wait_for_key, Live(console=console, screen=True) as live:
        while True:
            frame = reader.read()
            live.update(render_frame(frame, width=console.width, height=console.height), refresh=True)
            if wait_for_key(interval) in ("q", "Q"):
                return


@contextmanager
def reading_keys() -> Iterator[Callable[[float], str]]:
    """Yield a function that waits so many seconds for a key and returns it, "" if none was pressed.

    Without a keyboard (standard input is no terminal, or the system has no termios), it only waits.
    """
    try:
        import termios
        import tty
    except ImportError:  # Windows
        termios = None  # type: ignore[assignment]
    if termios is None or not sys.stdin.isatty():

        def wait(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield wait
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield lambda seconds: sys.stdin.read(1) if select.select([sys.stdin], [], [], seconds)[0] else ""
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
