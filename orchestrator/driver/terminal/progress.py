"""Live progress: a block of at most 80 columns on a terminal, plain lines in a log, with the time left in both.

Events are queued and drawn in a separate thread.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.driver.terminal.console import is_quiet, is_verbose
from orchestrator.driver.terminal.time_left import TimeLeft, format_duration
from orchestrator.execution.chunk_runner import TRAINED
from orchestrator.execution.shared_works import ELSEWHERE
from orchestrator.ledger.failures import OUT_OF_GPU_MEMORY
from orchestrator.planning.states import STOPPED
from orchestrator.planning.works import Work
from trainables.config import TrialConfig
from trainables.errors import RobustSweepError
from trainables.evaluation.metrics import MAIN_METRICS, name_over_shifts

#: Headline numbers by which "best so far" is told, of each task one: of in-distribution validation, like every choice.
SCORES = tuple(f"validation/{metric}" for metric in MAIN_METRICS.values())
_EPOCH_METRICS = (*(f"val/{metric}" for metric in MAIN_METRICS.values()), "val/accuracy", "ssl/loss", "train/loss")
_MAX_ROWS = 24
#: Widest block on a terminal: a line that a narrower window wraps is not erased when the block is drawn again.
_MAX_WIDTH = 79
#: Seconds between two summaries in a log.
SUMMARY_SECONDS = 60.0


@dataclass
class _Row:
    """Line of a running stage or trial."""

    work: Work
    started: float
    #: Whether a process has reported that it trains.
    is_training: bool = False
    epoch: int = 0
    phase: str = "starting"
    metrics: dict[str, float] = field(default_factory=dict)
    scores: Mapping[str, float | None] = field(default_factory=dict)


class StudyProgress:
    """Display of stages, trials, epochs, scores and time left. Use as a context manager.

    Args:
        console: console to draw on; it gets lines instead of a block if it is not a terminal.
        works: open stages and trials.
        num_done: number of stages and trials that were complete before this run.
        num_to_come: number of trials that a search has yet to propose.
        expect_seconds: returns signature → expected seconds of ``works``, as far as any are known; called in the
            display's thread.
        clock: clock in seconds.
    """

    def __init__(
        self,
        console: Console,
        *,
        works: Sequence[Work],
        num_done: int,
        num_to_come: int = 0,
        expect_seconds: Callable[[], Mapping[str, float]] = dict,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._clock, self._expect_seconds = console, clock, expect_seconds
        self._events: queue.SimpleQueue[tuple[float, str, Work, dict[str, Any]] | str | None] = queue.SimpleQueue()
        self._rows: dict[str, _Row] = {}
        self._works, self._num_to_come = works, num_to_come
        self._time_left = TimeLeft(works, expected={}, num_to_come=num_to_come)
        self._num_works, self._num_done = len(works) + num_to_come, num_done
        self._num_ended = self._num_failed = self._num_stopped = 0
        self._num_drivers = 1
        self._best: tuple[float, str] | None = None
        self._started = clock()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._consume, name="progress", daemon=True)
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render, transient=True)

    @property
    def _has_block(self) -> bool:
        return self._console.is_terminal and not is_quiet(self._console)

    def __enter__(self) -> StudyProgress:
        if self._has_block:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._events.put(None)
        self._thread.join()
        if self._has_block:
            self._live.stop()

    def handle_event(self, what: str, work: Work, details: dict[str, Any]) -> None:
        """Queue an event of a stage or trial to be shown; returns at once."""
        self._events.put((self._clock(), what, work, details))

    def estimate_seconds_left(self) -> float | None:
        """Return the estimated seconds until everything has ended, None while too little is known."""
        with self._lock:
            return self._time_left.compute(self._clock(), num_drivers=self._num_drivers)

    def print_line(self, line: str) -> None:
        """Print a line above the block; can be called from a signal handler."""
        self._events.put(line)

    def set_num_drivers(self, number: int) -> None:
        """Set how many drivers share the study, for the time left: each is taken to be as fast as this one."""
        self._num_drivers = number

    def _consume(self) -> None:
        try:
            expected = self._expect_seconds()
        except RobustSweepError as error:  # another study's ledger is damaged: this study runs all the same
            expected = {}
            self._print(f"no estimate from earlier studies: {escape(str(error))}")
        self._time_left = TimeLeft(self._works, expected=expected, num_to_come=self._num_to_come)
        next_summary = self._started + SUMMARY_SECONDS
        while True:
            try:
                item = self._events.get(timeout=max(next_summary - self._clock(), 0.0))
            except queue.Empty:
                self._print_plain(self._summarise(self._clock()))
                next_summary = self._clock() + SUMMARY_SECONDS
                continue
            if item is None:
                return
            if isinstance(item, str):
                self._print(item)
            else:
                with self._lock:
                    self._handle(*item)

    def _handle(self, now: float, what: str, work: Work, details: dict[str, Any]) -> None:
        if what == "started":
            self._rows[work.signature] = _Row(work, now)
            self._time_left.start(work, now)
            if is_verbose(self._console):
                self._print(f"{_name(work)}: started")
        elif what == "event":
            self._on_event(now, work, details)
        else:
            self._on_end(now, work, details)

    def _on_event(self, now: float, work: Work, event: dict[str, Any]) -> None:
        row = self._rows.setdefault(work.signature, _Row(work, now))
        kind = event.get("event")
        if kind == "started":
            if row.is_training:
                self._print(f"[yellow]lost[/yellow]  {_name(work)}: its process ended; started again")
            row.is_training, row.phase = True, "training"
        elif kind == "epoch":
            row.epoch, row.metrics, row.phase = event["epoch"], event["metrics"], "training"
            self._time_left.train(work, row.epoch, now)
            if is_verbose(self._console):
                self._print(f"{_name(work)}: epoch {_describe_epoch(work, row.epoch)}  {_metric(row.metrics)}")
        elif kind == "evaluation":
            row.phase = f"evaluating {event['done']}/{event['total']}"
            self._time_left.evaluate(work, now)
        elif kind == "scores":
            row.scores = event["metrics"]
        elif kind in (ELSEWHERE, OUT_OF_GPU_MEMORY, TRAINED):
            self._rows.pop(work.signature)
            self._on_set_aside(now, work, event)

    def _on_set_aside(self, now: float, work: Work, event: Mapping[str, Any]) -> None:
        """Print who goes on with a stage or trial, and when."""
        if event["event"] == ELSEWHERE:
            self._time_left.end(work, now, is_complete=False)
            self._print(f"[yellow]moved[/yellow]  {_name(work)}: another driver goes on with it")
        elif event["event"] == OUT_OF_GPU_MEMORY:
            self._time_left.put_back(work)
            why = f"no memory left with {event['gpus']:g} of a GPU; it goes on later with a larger share"
            self._print(f"[yellow]lost[/yellow]  {_name(work)}: {why}")
        else:
            self._time_left.hand_over(work, now)
            if is_verbose(self._console):
                self._print(f"{_name(work)}: trained by several processes; one evaluates it later")

    def _on_end(self, now: float, work: Work, details: dict[str, Any]) -> None:
        row = self._rows.pop(work.signature, None)
        self._num_ended += 1
        self._time_left.end(work, now, is_complete=details["status"] == "complete")
        count = f"{self._num_ended}/{self._num_works}"
        if details["status"] == "failed":
            self._num_failed += 1
            reason = str(details.get("message") or details.get("reason")).splitlines()[0]
            self._print(f"[red]failed[/red] {count}  {_name(work)}: {escape(reason)}")
        elif details["status"] == STOPPED:
            self._num_stopped += 1
            epoch = details.get("epoch", 0)
            when = f"after epoch {_describe_epoch(work, epoch)}" if epoch else "before it began"
            self._print_unless_quiet(f"stopped early {count}  {_name(work)}: {when}")
        elif details["status"] == "complete":
            seconds = f"{format_duration(now - row.started)}" if row else ""
            score = self._describe_score(work, row.scores) if row else ""
            name = escape(work.label) if self._console.is_terminal else _name(work)  # 80 columns are few
            where = "by another driver" if ELSEWHERE in details else ""
            self._print_unless_quiet("  ".join(filter(None, [f"done {count}", name, seconds, score, where])))

    def _describe_score(self, work: Work, scores: Mapping[str, float | None]) -> str:
        """Return a trial's scores and the best so far in words, and remember whose it is."""
        name = next((name for name in SCORES if scores.get(name) is not None), None)
        if name is None:
            return ""
        value = scores[name]
        assert value is not None
        if self._best is None or value > self._best[0]:
            self._best = value, work.label
        shifted = scores.get(name_over_shifts("mean", name.removeprefix("validation/")))
        under = "" if shifted is None else f", shifted {shifted:.3f}"
        return f"val {value:.3f}{under}, best val {self._best[0]:.3f}"

    def _print_unless_quiet(self, line: str) -> None:
        if not is_quiet(self._console):
            self._print(line)

    def _print_plain(self, line: str) -> None:
        """Print a line unless the console is quiet or a terminal, whose block shows the same."""
        if not self._console.is_terminal:
            self._print_unless_quiet(line)

    def _print(self, line: str) -> None:
        clock = time.strftime("%H:%M:%S")
        self._console.print(f"{clock} {line}", soft_wrap=True, highlight=False)

    def _summarise(self, now: float) -> str:
        """Return counts, time left and the best score in one line."""
        left = self._time_left.compute(now, num_drivers=self._num_drivers)
        parts = [
            f"{self._num_ended} of {self._num_works} ended",
            f"{len(self._rows)} running",
            f"{self._num_failed} failed",
            *([f"{self._num_stopped} stopped early"] if self._num_stopped else []),
            f"ETA {'unknown' if left is None else format_duration(left)}",
        ]
        if self._best is not None:
            parts.append(f"best val {self._best[0]:.3f} ({self._best[1]})")
        return escape(", ".join(parts))

    def _render(self) -> Group:
        now, width = self._clock(), min(self._console.width - 1, _MAX_WIDTH)
        table = Table(box=None, pad_edge=False, width=width, show_header=False)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for _ in range(3):
            table.add_column(no_wrap=True, overflow="ellipsis")
        rows = list(self._rows.values())
        for row in rows[:_MAX_ROWS]:
            metric = _metric(row.metrics).rpartition(" ")[2] if row.work.kind == "trial" else _metric(row.metrics)
            phase = f"epoch {_describe_epoch(row.work, row.epoch)}" if row.phase == "training" else row.phase
            table.add_row(escape(row.work.label), phase, metric, format_duration(now - row.started))
        if len(rows) > _MAX_ROWS:
            table.add_row(f"… and {len(rows) - _MAX_ROWS} more")
        left = self._time_left.compute(now, num_drivers=self._num_drivers)
        counts = f"{self._num_ended}/{self._num_works} · {format_duration(now - self._started)} · "
        counts += "ETA after the first epochs" if left is None else f"ETA {format_duration(left)}"
        bar = Table.grid(padding=(0, 1))
        bar_width = max(width - len(counts) - 2, 4)
        bar.add_row(ProgressBar(total=max(self._num_works, 1), completed=self._num_ended, width=bar_width), counts)
        notes = [f"{self._num_done} complete before"] if self._num_done else []
        notes += [f"{self._num_failed} failed"] if self._num_failed else []
        notes += [f"{self._num_stopped} stopped early"] if self._num_stopped else []
        notes += [f"best val {self._best[0]:.3f} {self._best[1]}"] if self._best is not None else []
        line = Text(" · ".join(notes), no_wrap=True, overflow="ellipsis")
        line.truncate(max(width, 1), overflow="ellipsis")
        return Group(table, bar, *([line] if notes else []))


def _describe_epoch(work: Work, epoch: int) -> str:
    config = work.config
    total = config.training.total_epochs if isinstance(config, TrialConfig) else config.pretraining.epochs
    return f"{epoch}/{total}"


def _metric(metrics: dict[str, float]) -> str:
    shown = next((key for key in _EPOCH_METRICS if key in metrics), None)
    return f"{shown} {metrics[shown]:.3f}" if shown else ""


def _name(work: Work) -> str:
    return escape(f"{work.label} [{work.signature[:8]}]")
