"""The command line, called in the process of the tests: what is imported once is imported for all. Tests only."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from orchestrator.cli import main as cli_main


@dataclass(frozen=True)
class Said:
    """What a command has printed."""

    stdout: str
    stderr: str


def call(folder: Path, *words: str, codes: Sequence[int] = (0,)) -> Said:
    """Run a command on ``folder/study.yaml`` with the ledger in ``folder/results``, and check its exit code."""
    command, *options = words
    return call_words(command, str(folder / "study.yaml"), *options, "--storage", str(folder / "results"), codes=codes)


def call_words(*words: str, codes: Sequence[int] = (0,)) -> Said:
    """Run ``robustsweep`` with these words, and check its exit code."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        mock.patch.object(sys, "argv", ["robustsweep", *words]),
        mock.patch.dict(os.environ, {"NO_COLOR": "1", "COLUMNS": "200"}),
        mock.patch("signal.signal"),  # a test run keeps its own handlers
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        try:
            cli_main.main()
        except SystemExit as ended:
            code = ended.code or 0
    assert code in codes, out.getvalue() + err.getvalue()
    return Said(out.getvalue(), err.getvalue())
