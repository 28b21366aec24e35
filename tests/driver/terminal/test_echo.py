from __future__ import annotations

import io
import logging
import sys

import pytest
from rich.table import Table

from orchestrator.driver.terminal.console import PrintableConsole
from orchestrator.driver.terminal.echo import PrintableFormatter, echo, print_output
from trainables.errors import MAX_QUOTED, RobustSweepError, make_printable, quote_first_line

#: What a terminal, or a reader, would be misled by → how it is shown.
SHOWN = {
    "\x1b[2J": r"\x1b[2J",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "\x9b1m": r"\x9b1m",
    "a\rb\x08c\x7f\0": r"a\rb\x08c\x7f\x00",
    "\u202egnp\u2066": r"\u202egnp\u2066",
    "\u2028\x85": r"\u2028\x85",
    "\udcff": r"\udcff",
    "\U000e0041": r"\U000e0041",
}


@pytest.mark.parametrize(("text", "shown"), SHOWN.items(), ids=map(ascii, SHOWN))
def test_nothing_steers_the_terminal(
    text: str, shown: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert make_printable(text) == make_printable(shown) == shown
    assert str(RobustSweepError(f"found {text}")) == f"found {shown}"
    assert quote_first_line(f"{text}!").endswith("!")
    echo(text)
    echo(text, err=True)
    assert capsys.readouterr() == (f"{shown}\n", f"{shown}\n")
    record = logging.LogRecord("x", logging.WARNING, "x", 1, "found %s", (text,), None)
    assert PrintableFormatter().format(record) == f"found {shown}"
    console = PrintableConsole(file=io.StringIO(), width=100, color_system=None)
    console.print(text, markup=False, highlight=False, emoji=False)
    table = Table("column")
    table.add_row(text)
    console.print(table)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert said.count(shown) >= 1
    assert text not in said


def test_what_people_write_stays_as_it_is() -> None:
    text = "Größe 5 µm\tσ = .5\n名前\u3000東京, 1\u00a0000 €, 🧪"
    assert make_printable(text) == text


def test_what_a_job_prints_keeps_its_colours(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\x1b[36m(worker pid=7)\x1b[0m epoch 1\r\n\x1b[1;31mlate\x1b[m \x1b[2Jgone \x1b]0;title\x07\x1b[?25l"
    shown = "\x1b[36m(worker pid=7)\x1b[0m epoch 1\n\x1b[1;31mlate\x1b[m " + r"\x1b[2Jgone \x1b]0;title\x07\x1b[?25l"
    print_output(text)
    assert capsys.readouterr().out == text, "a file gets what was printed"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_output(text)
    assert capsys.readouterr().out == shown


def test_a_quotation_is_short_and_without_passwords() -> None:
    assert quote_first_line("\n  no: http://ada:word@host/x\nerror: forged") == "no: http://***@host/x"
    assert len(quote_first_line("x" * 10_000_000)) == MAX_QUOTED
