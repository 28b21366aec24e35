"""A frame of ``robustsweep top`` as text for a terminal of any size from 80 × 24 characters."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.driver.terminal.time_left import format_duration
from orchestrator.planning.budget import format_amount
from orchestrator.study.execution_config import BUDGET_UNITS

#: Rows of failures at most.
_MAX_FAILURES = 5
#: A sign of life that is older is told: it is written every 2 or 10 s (``publish.SAVE_SECONDS``).
_LATE_SECONDS = 20.0
#: States of which the numbers are shown, beside the complete ones.
_STATES = ("running", "failed", "stopped_early", "interrupted", "missing")
#: Widest column of slots, and share of the width that hosts take at most.
_MAX_SLOT, _HOSTS = 11, 0.18
#: From this width on, the numbers of second and later attempts are shown.
_WIDE = 100


def render_frame(frame: Mapping[str, Any], *, width: int, height: int | None = None) -> RenderableType:
    """Return a frame as text: totals, what runs where, the last failures.

    Args:
        frame: result of ``FrameReader.read``.
        width: characters of a line.
        height: lines of the terminal; rows that do not fit are counted in one line. None: as many as there are.
    """
    head = [_line(text, width) for text in _describe_head(frame)]
    failures = list(reversed(frame["failures"]))[:_MAX_FAILURES]
    room = None if height is None else max(1, height - len(head) - 3 - (len(failures) + 2 if failures else 0))
    parts: list[RenderableType] = [*head, "", _render_running(frame, width, room)]
    if failures:
        parts += ["", Text("last failures", style="bold")]
        parts += [_line(_describe_failure(failure, frame), width) for failure in failures]
    return Group(*parts)


def _describe_head(frame: Mapping[str, Any]) -> list[Text]:
    """Return the lines of totals."""
    lines = [Text.assemble((_clean(frame["study"]), "bold"), f"  {_clock(frame['now_ms'])}")]
    lines += [_describe_driver(driver, frame["now_ms"]) for driver in frame["drivers"]]
    if not frame["drivers"]:
        lines.append(_labelled("driver", "none: nobody runs the study now"))
    lines.append(_labelled("trials", _describe_counts(frame["trials"])))
    if frame["stages"] is not None and frame["stages"]["planned"]:
        lines.append(_labelled("stages", _describe_counts(frame["stages"])))
    if frame["slots"] is not None:
        left = frame["eta_seconds"]
        eta = "after the first epochs" if left is None else format_duration(left)
        used = f"{frame['busy_slots']} of {frame['slots']} busy · utilisation {frame['utilisation']:.0%} · ETA {eta}"
        lines.append(_labelled("slots", used))
    lines.append(_labelled("used", _describe_usage(frame)))
    return lines


def _describe_driver(driver: Mapping[str, Any], now_ms: int) -> Text:
    silent = (now_ms - driver["alive_ms"]) / 1000
    text = f"{_clean(driver['host'])}, process {driver['pid']}, for {_since(driver['since_ms'], now_ms)}"
    line = _labelled("driver", text)
    if silent > _LATE_SECONDS:
        gone = "" if driver["is_alive"] else "gone: "
        line.append(f" · {gone}no sign of life for {format_duration(silent)}", style="red")
    return line


def _describe_counts(counts: Mapping[str, int]) -> str:
    others = [f"{counts[state]} {state.replace('_', ' ')}" for state in _STATES if counts.get(state)]
    return " · ".join([f"{counts['complete']} of {counts['planned']} complete", *others])


def _describe_usage(frame: Mapping[str, Any]) -> str:
    """Return time and money of all runs, with the limits of the budget."""
    wall, slots = (format_duration(frame["usage"][f"{name}_seconds"]) for name in ("wall", "slot"))
    parts = [f"{wall} wall", f"{slots} of trials and stages"]
    for name, amount in frame["taken"].items():
        limit = frame["limits"].get(name)
        if limit is not None or (amount and name != "wall_hours"):
            of = "" if limit is None else f" of {format_amount(limit)}"
            parts.append(f"{format_amount(amount)}{of} {BUDGET_UNITS[name]}")
    return " · ".join(parts)


def _render_running(frame: Mapping[str, Any], width: int, room: int | None) -> RenderableType:
    rows = sorted(frame["running"], key=lambda row: (str(row["host"]), _name_slot(row), row["since_ms"]))
    if not rows:
        return Text("nothing runs", style="dim")
    shown = rows if room is None or len(rows) <= room else rows[: room - 1]
    table = Table(box=None, pad_edge=False, width=width, header_style="bold")
    table.add_column("host", no_wrap=True, overflow="ellipsis", max_width=int(_HOSTS * width))
    table.add_column("slot", no_wrap=True, overflow="ellipsis", max_width=_MAX_SLOT)
    table.add_column("stage or trial", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("doing", no_wrap=True, overflow="ellipsis")
    table.add_column("for", no_wrap=True, justify="right")
    for row in shown:
        doing = f"epoch {row['epoch']}/{row['epochs']}" if row["phase"] == "training" else row["phase"]
        doing += f", attempt {row['attempt']}" if (row["attempt"] or 1) > 1 and width >= _WIDE else ""
        host, slot, label = _clean(row["host"] or "unknown"), _name_slot(row), _clean(row["label"])
        table.add_row(
            Text(host), Text(slot), Text(label), Text(_clean(doing)), _since(row["since_ms"], frame["now_ms"])
        )
    more = len(rows) - len(shown)
    return Group(table, Text(f"… and {more} more", style="dim")) if more else table


def _name_slot(row: Mapping[str, Any]) -> str:
    if row["devices"]:
        return _clean(f"gpu {row['devices']}")
    return _clean(str(row["slot"] or ""))


def _describe_failure(failure: Mapping[str, Any], frame: Mapping[str, Any]) -> Text:
    day = time.strftime("%m-%d ", time.localtime(failure["timestamp_ms"] / 1000))
    is_old = frame["now_ms"] - failure["timestamp_ms"] > 12 * 3600_000
    where = f" on {failure['host']}" if failure["host"] else ""
    said = f"{failure['label']} [{failure['signature'][:8]}]{where}: {failure['reason']}: {failure['message']}"
    return Text.assemble((f"{day * is_old}{_clock(failure['timestamp_ms'])} ", "red"), _clean(said))


def _labelled(label: str, text: str) -> Text:
    return Text.assemble((f"{label:<7} ", "bold"), text)


def _line(text: Text, width: int) -> Text:
    text.no_wrap = True
    text.truncate(width, overflow="ellipsis")
    return text


def _clock(moment_ms: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment_ms / 1000))


def _since(moment_ms: int, now_ms: int) -> str:
    return format_duration(max(0.0, (now_ms - moment_ms) / 1000))  # clocks of two machines differ


def _clean(text: str) -> str:
    """Return text without characters that would steer the terminal: a ledger may come from others."""
    return "".join(character if character.isprintable() else "?" for character in text)
