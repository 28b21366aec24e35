"""The driver's own slots: they work from the first second, while Ray takes its time to start, and then make way.

For trials without a GPU on one machine. The trials run in the same way as anywhere, each in a process of the node's
fork server (``slot.ChunkRunner``); only what hands them over is a thread here instead of a Ray actor.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

from orchestrator.execution.chunk_runner import ChunkRunner
from orchestrator.execution.dispatcher import Dispatcher

#: Starting Ray and an actor per slot takes some 12 CPU seconds, a tenth of what two cores do in a minute: what is over
#: sooner than this is faster without.
WORTH_SECONDS = 60.0
#: When no trial has ended after this long, they are not that short.
PATIENCE_SECONDS = 20.0
#: How often a slot tells what has happened.
_REPORT_SECONDS = 0.25


class LocalExecutor:
    """A context manager: its threads work at ``dispatcher`` until nothing is left, or others have taken over.

    Leaving waits for what runs, unless ``stop`` is set or an exception passes: then it is interrupted.

    Args:
        dispatcher: where the work is.
        num_slots: how many works at once.
        stop: set by whoever wants the study to stop, and here when a slot fails: leaving raises its error.
    """

    def __init__(self, dispatcher: Dispatcher, num_slots: int, *, stop: threading.Event) -> None:
        self._dispatcher, self._stop = dispatcher, stop
        self._abandoned = threading.Event()
        self._error: Exception | None = None
        self._began = time.monotonic()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"slot-{number}", daemon=True)
            for number in range(num_slots)
        ]

    def __enter__(self) -> LocalExecutor:
        self._dispatcher.set_num_slots(len(self._threads))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None:
            self._abandoned.set()
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def wait(self) -> bool:
        """Return True when it is time to start Ray, False when it is not needed any more."""
        while not self._is_over():
            left, waited = self._dispatcher.seconds_left, time.monotonic() - self._began
            if (left or 0.0) > WORTH_SECONDS or (left is None and waited > PATIENCE_SECONDS):
                return True
            self._dispatcher.wait(_REPORT_SECONDS)
        return False

    def _is_over(self) -> bool:
        return self._stop.is_set() or self._abandoned.is_set() or self._dispatcher.is_finished

    def _run(self, number: int) -> None:
        """Body of a slot's thread."""
        runner: ChunkRunner | None = None
        try:
            while not self._is_over() and self._dispatcher.may_continue(number):
                chunk = self._dispatcher.take_local(number)
                if chunk is None:
                    self._dispatcher.wait(_REPORT_SECONDS)  # for a stage that runs elsewhere
                    continue
                chunk["report_seconds"] = _REPORT_SECONDS
                if runner is None:
                    runner = ChunkRunner(chunk)
                else:
                    runner.begin(chunk)
                self._carry_out(number, runner)
        except Exception as error:  # noqa: BLE001 - the thread's boundary: leaving the context raises it
            self._error = error
            self._stop.set()
        finally:
            if runner is not None:
                runner.close()
            self._dispatcher.release_local(number)

    def _carry_out(self, number: int, runner: ChunkRunner) -> None:
        while not runner.is_done and not self._stop.is_set() and not self._abandoned.is_set():
            self._dispatcher.report_local(number, runner.step())
            if not self._dispatcher.may_continue(number):
                runner.stop_after_current()
