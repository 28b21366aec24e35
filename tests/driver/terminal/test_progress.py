from __future__ import annotations

import re
import time
from io import StringIO

import pytest
from rich.console import Console

from orchestrator.driver.terminal.console import Detail, Terminal
from orchestrator.driver.terminal.progress import StudyProgress
from tests.support.plans import make_stage, make_trial
from trainables.errors import StorageError

TRIAL = make_trial("factor=[red], other=[/]")


TRIAL_NAME = f"factor=[red], other=[/] · r0 [{TRIAL.signature[:8]}]"


class Clock:
    """Clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def follow(console: Console) -> str:
    clock = Clock()
    failed, stage = make_trial("failed"), make_stage("stage")
    with StudyProgress(console, works=[stage, TRIAL, failed], num_done=0, clock=clock) as progress:
        progress.handle_event("started", TRIAL, {})
        progress.handle_event("event", TRIAL, {"event": "started"})
        progress.handle_event("event", TRIAL, {"event": "epoch", "epoch": 1, "metrics": {"val/accuracy": 0.5}})
        progress.handle_event("event", TRIAL, {"event": "started"})
        progress.handle_event("event", TRIAL, {"event": "evaluation", "done": 1, "total": 4})
        scores = {"validation/balanced_accuracy": 0.91, "robustness/mean_balanced_accuracy": 0.7}
        progress.handle_event("event", TRIAL, {"event": "scores", "metrics": scores})
        progress.handle_event("event", TRIAL, {"event": "something new"})
        progress.print_line("stopping")
        clock.now = 125.0
        progress.handle_event("ended", TRIAL, {"status": "complete"})
        progress.handle_event(
            "ended", failed, {"status": "failed", "reason": "error", "message": "no [/tag] here\nmore"}
        )
        progress.handle_event("ended", stage, {"status": "interrupted"})
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def make_terminal(detail: Detail) -> Terminal:
    console = Terminal(detail=detail)
    console.file = StringIO()
    return console


def read_lines(text: str) -> list[str]:
    assert "\x1b" not in text
    return [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in text.splitlines()]


def test_a_log_has_a_line_for_every_trial_that_ended_with_its_score_and_the_best() -> None:
    lines = read_lines(follow(make_terminal("normal")))
    name = TRIAL_NAME
    assert lines[:4] == [
        f"lost  {name}: its process ended; started again",
        "stopping",
        f"done 1/3  {name}  2 min  val 0.910, shifted 0.700, best val 0.910",
        f"failed 2/3  failed · r0 [{make_trial('failed').signature[:8]}]: no [/tag] here",
    ]
    assert len(lines) == 4


def test_a_verbose_log_also_has_starts_and_epochs() -> None:
    lines = read_lines(follow(make_terminal("verbose")))
    assert lines[:2] == [f"{TRIAL_NAME}: started", f"{TRIAL_NAME}: epoch 1/20  val/accuracy 0.500"]
    assert len(lines) == 6


def test_a_quiet_log_has_failures_only() -> None:
    lines = read_lines(follow(make_terminal("quiet")))
    assert [line.split()[0] for line in lines] == ["lost", "stopping", "failed"]


def test_the_best_so_far_is_the_highest_of_validation() -> None:
    console = make_terminal("normal")
    works = [make_trial(name) for name in "abc"]
    with StudyProgress(console, works=works, num_done=0) as progress:
        for work, value in zip(works, (0.8, 0.9, 0.7), strict=True):
            progress.handle_event("started", work, {})
            scores = {"validation/balanced_accuracy": value, "robustness/mean_balanced_accuracy": None}
            progress.handle_event("event", work, {"event": "scores", "metrics": scores})
            progress.handle_event("ended", work, {"status": "complete"})
    lines = read_lines(console.file.getvalue())  # type: ignore[attr-defined]
    assert [line.split("  ")[-1] for line in lines] == [
        "val 0.800, best val 0.800",
        "val 0.900, best val 0.900",
        "val 0.700, best val 0.900",
    ]


def test_a_log_has_a_summary_every_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.driver.terminal.progress.SUMMARY_SECONDS", 0.05)
    console = make_terminal("normal")
    works = [make_trial("a"), make_trial("b")]
    expected = {work.signature: 600.0 for work in works}
    with StudyProgress(console, works=works, num_done=0, expect_seconds=lambda: expected) as progress:
        progress.handle_event("started", works[0], {})
        deadline = time.monotonic() + 10
        while "running" not in console.file.getvalue() and time.monotonic() < deadline:  # type: ignore[attr-defined]
            time.sleep(0.01)
    line = read_lines(console.file.getvalue())[-1]  # type: ignore[attr-defined]
    assert line == "0 of 2 ended, 1 running, 0 failed, ETA 20 min"


def test_a_damaged_ledger_of_another_study_costs_the_estimate_only() -> None:
    def fail() -> dict[str, float]:
        raise StorageError("read plan.json: it is damaged")

    console = make_terminal("normal")
    with StudyProgress(console, works=[TRIAL], num_done=0, expect_seconds=fail) as progress:
        progress.handle_event("ended", TRIAL, {"status": "complete"})
    assert [line.split()[0] for line in read_lines(console.file.getvalue())] == ["no", "done"]  # type: ignore[attr-defined]


def test_a_terminal_has_a_block_of_lines_that_never_wrap_at_80_columns() -> None:
    console = Console(file=StringIO(), width=200, force_terminal=True, color_system=None)
    works = [make_trial("x" * 200), *(make_trial(f"other {number}") for number in range(40))]
    progress = StudyProgress(console, works=works, num_done=3)
    for work in works:
        progress._handle(0.0, "started", work, {})
        progress._handle(1.0, "event", work, {"event": "epoch", "epoch": 3, "metrics": {"val/accuracy": 0.5}})
    with console.capture() as capture:
        console.print(progress._render())
    lines = capture.get().rstrip().splitlines()
    assert len(lines) == 24 + 1 + 1 + 1  # rows, "and 17 more", bar, counts
    assert max(map(len, lines)) < 80
    assert "3/20" in lines[0]
    assert "ETA" in lines[-2]
    assert "3 complete before" in lines[-1]


def test_a_terminal_keeps_the_lines_of_what_ended() -> None:
    text = follow(Console(file=StringIO(), width=200, force_terminal=True))
    assert "no [/tag] here" in text
    assert "best val" in text
    assert "epoch 1/20  val" not in text


def test_colours_respect_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = follow(Console(file=StringIO(), width=200, force_terminal=True))
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", text)


def test_what_was_stopped_early_is_said_with_its_last_epoch() -> None:
    console = Console(file=StringIO(), width=200)
    other = make_trial("other")
    with StudyProgress(console, works=[TRIAL, other], num_done=0) as progress:
        progress.handle_event("ended", TRIAL, {"status": "stopped_early", "epoch": 4})
        progress.handle_event("ended", other, {"status": "stopped_early"})
    lines = read_lines(console.file.getvalue())  # type: ignore[attr-defined]
    assert lines[0].startswith("stopped early 1/2  ")
    assert lines[0].endswith(": after epoch 4/20")
    assert lines[1].endswith(": before it began")


def test_what_had_no_gpu_memory_is_said_and_counted_as_open() -> None:
    console = make_terminal("normal")
    with StudyProgress(console, works=[TRIAL], num_done=0, num_to_come=1) as progress:
        progress.handle_event("started", TRIAL, {})
        progress.handle_event("event", TRIAL, {"event": "out of GPU memory", "gpus": 0.25, "message": "m"})
        progress.handle_event("started", TRIAL, {})
        progress.handle_event("ended", TRIAL, {"status": "complete"})
    why = "no memory left with 0.25 of a GPU; it goes on later with a larger share"
    lost, done = read_lines(console.file.getvalue())  # type: ignore[attr-defined]
    assert lost == f"lost  {TRIAL_NAME}: {why}"
    assert done.startswith(f"done 1/2  {TRIAL_NAME}")


def test_a_trained_trial_is_counted_as_open_until_it_is_evaluated() -> None:
    console = make_terminal("verbose")
    with StudyProgress(console, works=[TRIAL], num_done=0) as progress:
        for event in ("started", "trained", "started"):
            what = "started" if event == "started" else "event"
            progress.handle_event(what, TRIAL, {"event": event})
        progress.handle_event("ended", TRIAL, {"status": "complete"})
    _, trained, _, done = read_lines(console.file.getvalue())  # type: ignore[attr-defined]
    assert trained == f"{TRIAL_NAME}: trained by several processes; one evaluates it later"
    assert done.startswith(f"done 1/1  {TRIAL_NAME}")


def test_what_another_driver_has_taken_over_or_completed_is_said_once() -> None:
    console, other = make_terminal("normal"), make_trial("other")
    with StudyProgress(console, works=[TRIAL, other], num_done=0) as progress:
        progress.set_num_drivers(2)
        progress.handle_event("started", TRIAL, {})
        progress.handle_event("event", TRIAL, {"event": "elsewhere"})
        for work in (TRIAL, other):
            progress.handle_event("ended", work, {"status": "complete", "elsewhere": True})
    assert (
        read_lines(console.file.getvalue())
        == [  # type: ignore[attr-defined]
            f"moved  {TRIAL_NAME}: another driver goes on with it",
            f"done 1/2  {TRIAL_NAME}  by another driver",
            f"done 2/2  other · r0 [{other.signature[:8]}]  by another driver",
        ]
    )
