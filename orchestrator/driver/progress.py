"""Live progress: a table on a terminal, plain lines in a log. Events are queued and drawn in a separate thread."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from orchestrator.planning.plan import Work
from orchestrator.planning.states import STOPPED
from trainables.config import TrialConfig

_SHOWN = ("val/balanced_accuracy", "val/accuracy", "ssl/loss", "train/loss")
_MAX_ROWS = 24


@dataclass
class _Row:
    """Table row of a running stage or trial."""

    work: Work
    started: float = field(default_factory=time.monotonic)
    #: Whether a process has reported that it trains.
    is_training: bool = False
    epoch: int = 0
    phase: str = "starting"
    metrics: dict[str, float] = field(default_factory=dict)


class StudyProgress:
    """Display of stages, trials, epochs, time left and last metrics. Use as a context manager.

    Args:
        console: console to draw on; it gets lines instead of a table if it is not a terminal.
        num_works: number of open stages and trials.
        num_done: number of stages and trials that were complete before this run.
    """

    def __init__(self, console: Console, *, num_works: int, num_done: int) -> None:
        self._console = console
        self._events: queue.SimpleQueue[tuple[str, Work, dict[str, Any]] | str | None] = queue.SimpleQueue()
        self._rows: dict[str, _Row] = {}
        self._num_works, self._num_done = num_works, num_done
        self._num_ended = self._num_failed = self._num_stopped = 0
        self._thread = threading.Thread(target=self._consume, name="progress", daemon=True)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=console,
        )  # fmt: skip
        self._task = self._bar.add_task("stages and trials", total=num_works)
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render, transient=True)

    def __enter__(self) -> StudyProgress:
        if self._console.is_terminal:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._events.put(None)
        self._thread.join()
        if self._console.is_terminal:
            self._live.stop()

    def handle_event(self, what: str, work: Work, details: dict[str, Any]) -> None:
        """Queue an event of a stage or trial to be shown; returns at once."""
        self._events.put((what, work, details))

    def print_line(self, line: str) -> None:
        """Print a line above the table; can be called from a signal handler."""
        self._events.put(line)

    def _consume(self) -> None:
        while (item := self._events.get()) is not None:
            if isinstance(item, str):
                self._print(item)
                continue
            what, work, details = item
            if what == "started":
                self._rows[work.signature] = _Row(work)
                self._print_plain(work, "started")
            elif what == "event":
                self._on_event(work, details)
            else:
                self._on_end(work, details)

    def _on_event(self, work: Work, event: dict[str, Any]) -> None:
        row = self._rows.setdefault(work.signature, _Row(work))
        kind = event.get("event")
        if kind == "started":
            if row.is_training:
                self._print(f"[yellow]lost[/yellow]  {_name(work)}: its process ended; started again")
            row.is_training, row.phase = True, "training"
        elif kind == "epoch":
            row.epoch, row.metrics, row.phase = event["epoch"], event["metrics"], "training"
            self._print_plain(work, f"epoch {_describe_epoch(work, row.epoch)}  {_metric(row.metrics)}")
        elif kind == "evaluation":
            row.phase = f"evaluating {event['done']}/{event['total']}"

    def _on_end(self, work: Work, details: dict[str, Any]) -> None:
        row = self._rows.pop(work.signature, None)
        self._num_ended += 1
        self._bar.update(self._task, completed=self._num_ended)
        if details["status"] == "failed":
            self._num_failed += 1
            reason = str(details.get("message") or details.get("reason")).splitlines()[0]
            self._print(f"[red]failed[/red]  {_name(work)}: {escape(reason)}")
        elif details["status"] == STOPPED:
            self._num_stopped += 1
            epoch = details.get("epoch", 0)
            when = f"after epoch {_describe_epoch(work, epoch)}" if epoch else "before it began"
            self._print_plain(work, f"stopped early {when} ({self._num_ended}/{self._num_works})")
        elif details["status"] == "complete":
            seconds = time.monotonic() - row.started if row else 0.0
            self._print_plain(work, f"complete in {seconds:.0f} s ({self._num_ended}/{self._num_works})")

    def _print_plain(self, work: Work, text: str) -> None:
        """Print a plain line unless the console is a terminal, whose table shows the same."""
        if not self._console.is_terminal:
            self._print(f"{_name(work)}: {text}")

    def _print(self, line: str) -> None:
        clock = time.strftime("%H:%M:%S")
        self._console.print(f"{clock} {line}", soft_wrap=True, highlight=False)

    def _render(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for heading in ("running", "epoch", "last", "phase", "time"):
            table.add_column(heading, overflow="fold")
        rows = list(self._rows.values())
        for row in rows[:_MAX_ROWS]:
            epoch = _describe_epoch(row.work, row.epoch)
            table.add_row(
                _name(row.work), epoch, _metric(row.metrics), row.phase, f"{time.monotonic() - row.started:.0f} s"
            )
        if len(rows) > _MAX_ROWS:
            table.add_row(f"… and {len(rows) - _MAX_ROWS} more")
        counts = f"{self._num_done} complete before · {self._num_failed} failed"
        counts += f" · {self._num_stopped} stopped early" if self._num_stopped else ""
        return Group(table, self._bar, counts)


def _describe_epoch(work: Work, epoch: int) -> str:
    config = work.config
    total = config.training.epochs if isinstance(config, TrialConfig) else config.pretraining.epochs
    return f"{epoch}/{total}"


def _metric(metrics: dict[str, float]) -> str:
    shown = next((key for key in _SHOWN if key in metrics), None)
    return f"{shown} {metrics[shown]:.3f}" if shown else ""


def _name(work: Work) -> str:
    name = work.name if work.replicate is None else f"{work.name} · replicate {work.replicate}"
    name += "" if work.candidate is None else f" · candidate {work.candidate}"
    return escape(f"{work.kind} {name} [{work.signature[:8]}]")
