"""Reference page of the command line, made from the commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer

from orchestrator.cli import main

_HEAD = """# Command line

Made from the commands themselves: `robustsweep COMMAND --help` says the same.
"""


def describe_commands() -> str:
    """Return the page: usage, arguments and options of every command, and the exit codes."""
    group: Any = typer.main.get_command(main.app)
    codes = (inspect.getdoc(main) or "").partition("Exit codes:")[2].partition("Heavy packages")[0].strip()
    parts = [_HEAD, f"Exit codes: {' '.join(codes.split())}\n"]
    parts += _describe(group, "robustsweep", is_root=True)
    return "\n".join(parts)


def _describe(command: Any, name: str, *, is_root: bool = False) -> Iterator[str]:
    """Yield the parts of the page for a command and the commands below it."""
    context = command.context_class(command, info_name=name)
    if not is_root:
        yield f"## {name.removeprefix('robustsweep ')}\n"
        yield f"{inspect.cleandoc(command.help or '')}\n"
        yield f"```text\n{' '.join(command.get_usage(context).split()).removeprefix('Usage: ')}\n```\n"
    records = [record for each in command.params if (record := each.get_help_record(context))]
    if records:
        yield "| argument or option | what it does |\n|---|---|"
        yield "".join(f"| `{_escape(name)}` | {_escape(text).replace('<', '&lt;')} |\n" for name, text in records)
    for each, inner in getattr(command, "commands", {}).items():
        yield from _describe(inner, f"{name} {each}")


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
