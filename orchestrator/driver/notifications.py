"""Notifications that a run has ended, a trial has failed or the budget is spent: by web hook, e-mail, chat, …

The targets are URLs of apprise (``json://host/hook``, ``mailto://user:password@host``, ``slack://…``). They are
secrets: they come from the environment or from a file outside the study, and no log, file or message repeats one.
Messages are sent in a separate thread. A message that cannot be sent is a warning and never fails a study.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import Any

from orchestrator.planning.works import Work
from orchestrator.study.execution_config import Event, NotifyConfig
from trainables.errors import redact

#: How long the end of a run waits for unsent messages.
PATIENCE_SECONDS = 20.0
#: Event → apprise's type of notification, which chats show as a colour.
_TYPES: dict[Event, str] = {"end": "info", "failure": "failure", "budget": "warning"}
_TITLES: dict[Event, str] = {"end": "the run has ended", "failure": "a trial failed", "budget": "the budget is spent"}
#: Maximum length of a message; tracebacks are in the ledger.
_MAX_CHARACTERS = 500


class Notifier:
    """Sender of notifications about one run. A context manager: leaving it reports an error and waits for the queue.

    Args:
        config: events and targets; None sends nothing.
        study: name of the study.
        warn: callback for warnings, such as a failure to send; called from any thread.
        environ: environment in which ``urls_env`` is looked up.
    """

    def __init__(
        self,
        config: NotifyConfig | None,
        *,
        study: str,
        warn: Callable[[str], None],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._study, self._warn = study, warn
        self._events: Sequence[Event] = () if config is None else config.on
        self._urls = [] if config is None else read_urls(config, environ, warn)
        self._has_failed = False
        self._queue: queue.SimpleQueue[tuple[Event, str] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="notify", daemon=True)
        if self._urls and find_spec("apprise") is None:
            self._urls = []
            warn("no notifications will be sent: apprise is not installed; pip install 'robustsweep[notify]'")

    def __enter__(self) -> Notifier:
        if self._urls:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, Exception):
            self.notify("end", f"stopped by an error: {error}")
        self._queue.put(None)
        if not self._urls or (kind is not None and not isinstance(error, Exception)):
            return  # an interrupt by the user: nothing to report, and no time to wait
        self._thread.join(PATIENCE_SECONDS)
        if self._thread.is_alive():
            self._warn(f"not everything could be sent within {PATIENCE_SECONDS:.0f} s")

    def notify(self, event: Event, text: str) -> None:
        """Queue a message if such events are configured; returns at once."""
        if self._urls and event in self._events:
            self._queue.put((event, redact(text)[:_MAX_CHARACTERS]))

    def notify_failure(self, work: Work, details: Mapping[str, Any]) -> None:
        """Queue a message about the first stage or trial that fails in a run; returns at once."""
        if not self._has_failed:
            self._has_failed = True
            name = work.name if work.replicate is None else f"{work.name}, replicate {work.replicate}"
            name += "" if work.candidate is None else f", candidate {work.candidate}"
            reason = str(details["message"]).partition("\n")[0]
            self.notify("failure", f"{work.kind} {name} [{work.signature}]: {reason}. The study goes on.")

    def _run(self) -> None:
        """Body of the thread."""
        try:
            self._send_all()
        except Exception as error:  # noqa: BLE001 - the thread's boundary; the error's text may hold a URL
            self._warn(f"no further notifications are sent: apprise failed with {type(error).__name__}")

    def _send_all(self) -> None:
        # apprise logs the URLs that it could not send to.
        logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
        import apprise  # takes some 0.3 s

        receivers = []
        for number, url in enumerate(self._urls, start=1):
            receiver = apprise.Apprise.instantiate(url, suppress_exceptions=True)
            if receiver is None:
                self._warn(f"URL {number} of {len(self._urls)} is not one that apprise knows: nothing is sent there")
            else:
                receivers.append((number, receiver))
        while (message := self._queue.get()) is not None:
            for number, receiver in receivers:
                self._send(number, receiver, *message)

    def _send(self, number: int, receiver: Any, event: Event, text: str) -> None:
        title = f"RobustSweep, {self._study}: {_TITLES[event]}"
        try:
            problem = "" if receiver.notify(body=text, title=title, notify_type=_TYPES[event]) else "it was not taken"
        except Exception as error:  # noqa: BLE001 - the boundary to a hundred services, each with errors of its own
            problem = type(error).__name__  # its text may hold the URL
        if problem:
            self._warn(
                f"could not send {_TITLES[event]!r} to URL {number} of {len(self._urls)} ({receiver.service_name}): "
                f"{problem}; try it with: apprise -vv -b test URL"
            )


def read_urls(config: NotifyConfig, environ: Mapping[str, str], warn: Callable[[str], None]) -> list[str]:
    """Return the URLs of the environment variable and of the file; problems in reading them are warnings."""
    urls = environ.get(config.urls_env, "").split()
    where = f"the environment variable {config.urls_env} is not set"
    if config.urls_file is not None:
        where += f", and {config.urls_file} has none"
        try:
            path = config.urls_file.expanduser()
            lines = path.read_text(encoding="utf-8").splitlines()
            if path.stat().st_mode & 0o077:
                warn(f"others on this machine may read {path}, which holds secrets; chmod 600 {path}")
        except (OSError, RuntimeError, UnicodeDecodeError) as error:  # RuntimeError: ~nobody/…
            lines = []
            warn(f"could not read execution.notify.urls_file: {error}")
        urls += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not urls:
        warn(f"no notifications will be sent: {where}")
    return urls
