from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.main import app
from tests.support.trained_study import TrainedStudy
from trainables.errors import StudyError


def options(trained: TrainedStudy) -> list[str]:
    return ["explore", str(trained.file), "--storage", str(trained.storage)]


def test_a_trial_is_exported_and_its_size_said(trained_study: TrainedStudy, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "explorer.html"
    done = CliRunner().invoke(app, [*options(trained_study), "--export", str(target)], catch_exceptions=False)
    assert done.exit_code == 0
    assert re.search(r"explorer\.html \(\d\.\d MB\)", done.output.replace("\n", ""))
    assert target.read_text().startswith("<!doctype html>")


def test_the_trial_of_a_signature_that_is_not_there_is_an_error(trained_study: TrainedStudy, tmp_path: Path) -> None:
    words = [*options(trained_study), "--trial", "nothing", "--export", str(tmp_path / "explorer.html")]
    with pytest.raises(StudyError, match="found 0 complete ones"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_it_serves_until_it_is_interrupted(trained_study: TrainedStudy) -> None:
    words = [sys.executable, "-m", "robustsweep", *options(trained_study), "--no-browser"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().removeprefix("explorer ").strip()
            assert url.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(url, timeout=30) as answer:
                assert b"importmap" in answer.read()
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            assert "stopped" in process.stdout.read()
        finally:
            process.kill()
