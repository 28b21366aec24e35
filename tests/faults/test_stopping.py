"""SIGTERM with the grace that Ray's jobs give, and impatience: the driver is gone in time, and nothing is lost."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from orchestrator.analysis.results import load_results, results_sha256
from orchestrator.ledger.ledger import Ledger
from tests.conftest import FinishedStudy
from tests.support.processes import lines
from tests.support.tiny_study import IN_RAY, Place, make_place

#: ``RAY_JOB_STOP_WAIT_TIME_S``.
GRACE_SECONDS = 3.0


def stop(place: Place, *signals: signal.Signals, options: tuple[str, ...] = ()) -> tuple[int, str]:
    """Run until the first epoch, send the signals, kill after the grace; return the exit code and what was said."""
    process = place.start("run", *options)
    said, coming = "", lines(process)
    while ": epoch " not in said:
        said += next(coming)
    first, *more = signals
    process.send_signal(first)
    for number in more:  # two of the same at once are one
        while "once more to stop at once" not in said:
            said += next(coming)
        process.send_signal(number)
    try:
        rest, errors = process.communicate(timeout=GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        rest, errors = process.communicate()
    return process.returncode, said + rest + errors


@pytest.mark.long
@pytest.mark.parametrize(
    ("signals", "options"),
    [
        ((signal.SIGTERM,), ()),
        ((signal.SIGTERM,), IN_RAY),
        ((signal.SIGINT, signal.SIGINT), ()),
        ((signal.SIGINT, signal.SIGINT), IN_RAY),
    ],
)
def test_whoever_is_in_a_hurry_is_obeyed(
    finished_study: FinishedStudy, tmp_path: Path, signals: tuple[signal.Signals, ...], options: tuple[str, ...]
) -> None:
    place = make_place(tmp_path, finished_study.place.study.parent / "cache")
    code, said = stop(place, *signals, options=options)
    assert code == (5 if signal.SIGTERM in signals else 1), said
    assert f"stopped; go on with: robustsweep run {place.study} --storage {place.storage}" in said
    assert "Traceback" not in said
    assert "***" not in said  # Ray's own handler of signals prints a stack trace of the driver
    assert not (place.ledger / "lease.json").exists()
    place.wait_for_silence()
    done = place.call("run")
    assert done.returncode == 0, done.stdout + done.stderr
    undisturbed = Ledger(str(finished_study.place.storage), "tiny")
    assert results_sha256(load_results(Ledger(str(place.storage), "tiny"))) == results_sha256(load_results(undisturbed))
