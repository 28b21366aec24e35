"""Run chunks in threads of the driver: from the first second, until Ray has started and its slots replace these.

For trials without a GPU on one machine. As in every slot, each trial runs in a process of the node's fork server
(``ChunkRunner``); only the slot is a thread here instead of a Ray actor.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

from orchestrator.execution.chunk_runner import ChunkRunner
from orchestrator.execution.dispatcher import Dispatcher

#: Ray is started for more remaining time than this. Starting it and an actor per slot takes some 12 CPU seconds, a
#: tenth of what two cores do in a minute.
WORTH_SECONDS = 60.0
#: Ray is started, too, if no trial has ended after this long: trials are not that short.
PATIENCE_SECONDS = 20.0
#: Seconds between two reports of a slot.
_REPORT_SECONDS = 0.25


class LocalExecutor:
    """Context manager whose threads run chunks until nothing is left or Tune's slots have replaced them.

    Leaving waits for running stages and trials, unless ``stop`` is set or an exception passes: then they are
    interrupted.

    Args:
        dispatcher: source of chunks and receiver of events.
        num_slots: number of stages and trials that run at once.
        stop: event that ends the study; also set here when a slot fails, whose error is raised on leaving.
        has_ray: whether Ray can replace the slots.
    """

    def __init__(self, dispatcher: Dispatcher, num_slots: int, *, stop: threading.Event, has_ray: bool = True) -> None:
        self._dispatcher, self._stop, self._has_ray = dispatcher, stop, has_ray
        self._abandoned, self._needs_share = threading.Event(), threading.Event()
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
        """Return True once Ray should be started, False once everything is over without it.

        It is also over where all that is left needs a larger share of a GPU (``Dispatcher.waits_for_share``).
        """
        while not self._is_over():
            left, waited = self._dispatcher.seconds_left, time.monotonic() - self._began
            is_long = (left or 0.0) > WORTH_SECONDS or (left is None and waited > PATIENCE_SECONDS)
            if self._has_ray and is_long:
                return True
            self._dispatcher.wait(_REPORT_SECONDS)
        return False

    def _is_over(self) -> bool:
        if self._dispatcher.waits_for_share:
            self._needs_share.set()  # for all slots, also if another driver leaves something to this one meanwhile
        is_ended = self._stop.is_set() or self._abandoned.is_set() or self._needs_share.is_set()
        return is_ended or self._dispatcher.is_finished

    def _run(self, number: int) -> None:
        """Run the chunks of one slot, in its thread."""
        runner: ChunkRunner | None = None
        try:
            while not self._is_over() and self._dispatcher.may_continue(number):
                chunk = self._dispatcher.next_local_chunk(number)
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
