"""Plain lines of commands, printed without Rich; nothing in them steers the terminal."""

from __future__ import annotations

import logging
import re
import sys

import typer

from trainables.errors import make_printable

#: Colours and styles of text, which change nothing else (ECMA-48, SGR).
_STYLE = re.compile(r"(\x1b\[[0-9;]*m)")


def echo(text: object, *, err: bool = False) -> None:
    """Print a line on standard output, or on standard error, with control characters as escapes."""
    typer.echo(make_printable(str(text)), err=err)


def show_output(text: str) -> str:
    """Return what a program has printed, for a terminal: colours stay, other control sequences become escapes."""
    parts = _STYLE.split(text.replace("\r\n", "\n"))
    return "".join(part if number % 2 else make_printable(part) for number, part in enumerate(parts))


def print_output(text: str) -> None:
    """Write what a program has printed to standard output at once: as it is, but on a terminal as ``show_output``."""
    sys.stdout.write(show_output(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


class PrintableFormatter(logging.Formatter):
    """Formatter of log messages that makes them printable."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message of a record."""
        return make_printable(super().format(record))
