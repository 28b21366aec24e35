from __future__ import annotations

import re
from io import StringIO

from rich.console import Console

from orchestrator.driver.progress import StudyProgress
from tests.support.plans import make_stage, make_trial

TRIAL = make_trial("factor=[red], other=[/]")


def follow(console: Console) -> str:
    with StudyProgress(console, num_works=3, num_done=0) as progress:
        progress.handle_event("started", TRIAL, {})
        progress.handle_event("event", TRIAL, {"event": "started"})
        progress.handle_event("event", TRIAL, {"event": "epoch", "epoch": 1, "metrics": {"val/accuracy": 0.5}})
        progress.handle_event("event", TRIAL, {"event": "started"})
        progress.handle_event("event", TRIAL, {"event": "evaluation", "done": 1, "total": 4})
        progress.handle_event("event", TRIAL, {"event": "something new"})
        progress.print_line("stopping")
        progress.handle_event("ended", TRIAL, {"status": "complete"})
        failed = make_trial("failed")
        progress.handle_event(
            "ended", failed, {"status": "failed", "reason": "error", "message": "no [/tag] here\nmore"}
        )
        progress.handle_event("ended", make_stage("stage"), {"status": "interrupted"})
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_a_log_has_plain_lines_with_everything_as_it_is() -> None:
    text = follow(Console(file=StringIO(), width=40))
    assert "\x1b" not in text
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in text.splitlines()]
    name = f"trial factor=[red], other=[/] · replicate 0 [{TRIAL.signature[:8]}]"
    assert lines[:5] == [
        f"{name}: started",
        f"{name}: epoch 1/20  val/accuracy 0.500",
        f"lost  {name}: its process ended; started again",
        "stopping",
        f"{name}: complete in 0 s (1/3)",
    ]
    assert lines[5].startswith("failed  trial failed · replicate 0")
    assert lines[5].endswith(": no [/tag] here")
    assert len(lines) == 6


def test_a_terminal_has_a_table_that_leaves_nothing_behind_but_failures() -> None:
    text = follow(Console(file=StringIO(), width=200, force_terminal=True))
    assert "stages and trials" in text
    assert "no [/tag] here" in text
    assert "epoch 1/20  val" not in text


def test_what_was_stopped_early_is_said_with_its_last_epoch() -> None:
    console = Console(file=StringIO(), width=200)
    with StudyProgress(console, num_works=2, num_done=0) as progress:
        progress.handle_event("ended", TRIAL, {"status": "stopped_early", "epoch": 4})
        progress.handle_event("ended", make_trial("other"), {"status": "stopped_early"})
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "stopped early after epoch 4/20 (1/2)" in text
    assert "stopped early before it began (2/2)" in text
