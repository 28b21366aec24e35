"""Consoles of commands: what they print cannot steer the terminal, whoever wrote it."""

from __future__ import annotations

from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from trainables.errors import make_printable

#: How much a console is to say.
Detail = Literal["quiet", "normal", "verbose"]


class PrintableConsole(Console):
    """Console that shows control characters in strings as escapes: names and texts may come from others."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as Rich's ``Text``, made printable."""
        return super().render_str(make_printable(text), **options)


class Terminal(PrintableConsole):
    """Console of a command, with how much it is to say.

    Args:
        stderr: whether to write to standard error.
        detail: ``quiet`` prints warnings, failures and results only, ``verbose`` also every epoch.
    """

    def __init__(self, *, stderr: bool = False, detail: Detail = "normal") -> None:
        super().__init__(stderr=stderr)
        self.detail = detail


def is_quiet(console: Console) -> bool:
    """Return whether a console is to get warnings, failures and results only."""
    return isinstance(console, Terminal) and console.detail == "quiet"


def is_verbose(console: Console) -> bool:
    """Return whether a console is to get every epoch."""
    return isinstance(console, Terminal) and console.detail == "verbose"
