"""Early stopping of the trials of a search; Ray Tune's schedulers decide which trials stop.

    trials/<signature>/stop.json   rule, metric, and the mean of which replicates was judged after which epoch

The driver writes the file, and the trial checks for it before each epoch: this works between nodes and on object
stores, and it survives a kill of the driver or the trial. Configurations are compared by the mean of their replicates
after the same epoch, once the slowest replicate has reached it; when one has to stop, all its replicates stop. A
configuration whose replicates have all ended is compared with others, and no longer judged.

No other state is kept. A new run replays ``epochs.jsonl`` to the rules, in the order in which the epochs ended, so a
decision that was made but not written before a kill is made again.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.states import COMPLETE, FAILED
from orchestrator.planning.works import Work
from orchestrator.search.proposals import Proposal, Search
from orchestrator.study.search.config import SearchConfig, find_epoch_metric
from trainables.config import TrialConfig
from trainables.errors import DiskFullError, StorageError
from trainables.storage.completeness import EPOCHS, RESULT, STOP, is_stopped

_logger = logging.getLogger(__name__)

#: Pause between attempts at a write that the storage refuses.
_RETRY_SECONDS = 1.0
#: How long the attempts continue after the study has ended, and after it was interrupted.
PATIENCE_SECONDS, INTERRUPT_TIMEOUT_SECONDS = 30.0, 1.0

#: Arguments of ``dispatcher.OnEvent``: an event, its stage or trial, and details.
_Event = tuple[str, Work, dict[str, Any]]


class Rule(Protocol):
    """Rule that decides which configurations stop early (``cluster.tune_schedulers.StoppingRule``)."""

    def judge(self, configuration: str, epoch: int, value: float) -> bool:
        """Return whether a running configuration has to stop, given its value after an epoch."""

    def record(self, configuration: str, epoch: int, value: float) -> None:
        """Add the value of a configuration that is no longer judged."""


#: Returns a rule, given the configuration of the search and the number of epochs of the longest training.
MakeRule = Callable[[SearchConfig, int], Rule]


class Judge:
    """Judges the configurations of a search, from the events of their trials.

    Args:
        search: search with ``early_stopping``; its proposals are read.
        ledger: ledger of the study.
        make_rule: factory of the rule, called before the first decision.
    """

    def __init__(self, search: Search, ledger: Ledger, make_rule: MakeRule) -> None:
        config = search.config.early_stopping
        assert config is not None
        self._search, self._ledger, self._config = search, ledger, config
        self._make_rule = make_rule
        self._name = search.config.stopping_metric
        self._metric = find_epoch_metric(self._name)
        self._rule: Rule | None = None
        #: Signature of a trial → its configuration.
        self._proposal_of: dict[str, Proposal] = {}
        #: Signature of a trial → last epoch reported to the rule.
        self._last_epochs: dict[str, int] = {}
        #: Signature of a configuration and epoch → signature of a trial → its value, None if it is not defined.
        self._values: dict[tuple[str, int], dict[str, float | None]] = {}
        #: Signatures of trials that are complete or have failed.
        self._ended: set[str] = set()
        #: Signature of a configuration → content of ``stop.json``.
        self._decisions: dict[str, dict[str, Any]] = {}
        #: Trials whose ``stop.json`` is still to be written.
        self.pending_stops: dict[str, Work] = {}

    def process_event(self, what: str, work: Work, details: dict[str, Any]) -> None:
        """Judge by an event of a trial; decisions stay pending until ``write``."""
        if work.signature not in self._proposal_of:
            self.replay_ledger()
        proposal = self._proposal_of.get(work.signature)
        if proposal is None:
            return
        if what == "started":  # perhaps again, after it had failed
            self._ended.discard(work.signature)
        if what == "ended" and details["status"] in (COMPLETE, FAILED):  # perhaps early (``training.patience``)
            self._ended.add(work.signature)
        if proposal.signature in self._decisions:
            if what == "started":
                self.pending_stops[work.signature] = work
            return
        for line in self._find_new_epochs(what, work, details):
            self._report_epoch(work, line)
            if proposal.signature in self._decisions:
                return

    def _find_new_epochs(self, what: str, work: Work, details: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the epochs not yet reported to the rule. Slots report only the newest one; the ledger has them all."""
        is_epoch, told = details.get("event") == "epoch", self._last_epochs.get(work.signature, 0)
        if is_epoch and details["epoch"] == told + 1:
            return [details]
        if not is_epoch and what != "ended":
            return []
        return [line for line in self._read_epochs(work) if line["epoch"] > told]

    def _read_epochs(self, work: Work) -> list[dict[str, Any]]:
        try:
            return self._ledger.folder("trial", work.signature).read_lines(EPOCHS)
        except StorageError as error:  # read again at its next event; a damaged file is written anew
            _logger.warning("early stopping has not seen the epochs of %s yet: %s", work.signature, error)
            return []

    def _report_epoch(self, work: Work, line: dict[str, Any]) -> None:
        """Judge the configuration of a trial by an epoch that all its replicates have now reached, or record it."""
        assert isinstance(work.config, TrialConfig)
        proposal, epoch = self._proposal_of[work.signature], line["epoch"]
        self._last_epochs[work.signature] = epoch
        values = self._values.setdefault((proposal.signature, epoch), {})
        values[work.signature] = line["metrics"].get(self._metric)
        decision = self._decisions.get(proposal.signature)
        compared = decision["values"] if decision else [trial.signature for trial in proposal.plan.trials]
        known = {each: value for each in compared if (value := values.get(each)) is not None}
        if work.signature not in known or len(known) < len(compared):
            return  # a replicate is not so far, has ended before this epoch, or its value is not defined
        mean = sum(known.values()) / len(known)
        rule = self._find_rule()
        is_open = any(trial.signature not in self._ended for trial in proposal.plan.trials)
        if decision or not is_open or epoch >= work.config.training.epochs:
            rule.record(proposal.signature, epoch, mean)
        elif rule.judge(proposal.signature, epoch, mean):
            self._stop_configuration(
                proposal,
                {
                    "rule": self._config.kind,
                    "metric": self._name,
                    "epoch": epoch,
                    "value": mean,
                    "values": known,
                    "timestamp_ms": int(time.time() * 1000),
                },
            )

    def _find_rule(self) -> Rule:
        if self._rule is None:
            self._rule = self._make_rule(self._search.config, self._search.max_epochs)
        return self._rule

    def _stop_configuration(self, proposal: Proposal, verdict: dict[str, Any]) -> None:
        self._decisions[proposal.signature] = verdict
        self.pending_stops |= {trial.signature: trial for trial in proposal.plan.trials}

    # ------------------------------------------------------------------ the ledger

    def replay_ledger(self) -> None:
        """Replay the ledger's epochs of new proposals to the rules, in the order in which the epochs ended."""
        new = [each for each in list(self._search.proposals) if each.plan.trials[0].signature not in self._proposal_of]
        lines: list[tuple[int, str, int, Work, dict[str, Any]]] = []
        for proposal in new:
            for trial in proposal.plan.trials:
                self._proposal_of[trial.signature] = proposal
                folder = self._ledger.folder("trial", trial.signature)
                if folder.exists(RESULT) or folder.exists("failure.json"):
                    self._ended.add(trial.signature)
                elif is_stopped(folder):
                    self._stop_configuration(proposal, folder.read_json(STOP))
                for line in self._read_epochs(trial):
                    lines.append((line["timestamp_ms"], trial.signature, line["epoch"], trial, line))
        for _, signature, epoch, trial, line in sorted(lines, key=lambda each: each[:3]):
            decision = self._decisions.get(self._proposal_of[signature].signature)
            is_new = epoch > self._last_epochs.get(signature, 0)  # a configuration can be proposed twice
            if is_new and (decision is None or epoch <= decision["epoch"]):
                self._report_epoch(trial, line)

    def write(self) -> None:
        """Write pending stop decisions; those that the storage refuses stay pending."""
        for signature, work in list(self.pending_stops.items()):
            try:
                self._write_stop(work)
            except DiskFullError:
                raise
            except StorageError as error:
                _logger.warning("could not stop trial %s, trying again: %s", signature, error)
                return
            del self.pending_stops[signature]

    def _write_stop(self, work: Work) -> None:
        folder = self._ledger.folder("trial", work.signature)
        if folder.exists(RESULT) or folder.exists("failure.json") or folder.is_intact(STOP):
            return  # it has ended, or the decision is there already
        folder.write_json(STOP, self._decisions[self._proposal_of[work.signature].signature])


class EarlyStopping:
    """Thread in which a ``Judge`` works. Importing Ray takes seconds, and a storage may be slow.

    Args:
        search: search with ``early_stopping``; its proposals are read.
        ledger: ledger of the study.
        make_rule: factory of the rule, called in that thread.
        stop: event that is set when nothing can be judged any more; ``check`` raises the reason.
    """

    def __init__(self, search: Search, ledger: Ledger, make_rule: MakeRule, *, stop: threading.Event) -> None:
        self._judge, self._stop = Judge(search, ledger, make_rule), stop
        self._events: queue.SimpleQueue[_Event | None] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="early-stopping", daemon=True)
        self._thread.start()

    def handle(self, what: str, work: Work, details: dict[str, Any]) -> None:
        """Queue an event of a trial for judging (``dispatcher.OnEvent``); stages are ignored. Returns at once."""
        if work.kind == "trial":
            self._events.put((what, work, details))

    def finish(self, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        """Process the queued events, write pending stop decisions, and end the thread."""
        self._events.put(None)
        self._thread.join(timeout_seconds)
        self._given_up.set()

    def check(self) -> None:
        """Raise the error that kept trials from being judged or a decision from being written; call after ``finish``.

        Raises:
            StorageError: the ledger could not be read or written.
            Exception: any error of Tune's schedulers.
        """
        if self._error is not None:
            raise self._error
        if self._judge.pending_stops:
            raise StorageError(
                f"could not write {STOP} of {len(self._judge.pending_stops)} trials; run the study again to go on"
            )

    def _run(self) -> None:
        judge = self._judge
        try:
            judge.replay_ledger()
            while True:
                judge.write()
                try:
                    event = self._events.get(timeout=_RETRY_SECONDS if judge.pending_stops else None)
                except queue.Empty:
                    continue
                if event is None:
                    break
                judge.process_event(*event)
            while judge.pending_stops and not self._given_up.wait(_RETRY_SECONDS):
                judge.write()
        except Exception as error:  # noqa: BLE001 - the thread's boundary: ``check`` raises it
            self._error = error
            self._stop.set()
