"""Adaptive search as an extensible plan: proposals so far × replicates, reconciled with the ledger like any plan.

    search.jsonl   one line per proposal, written before its trials start: number, round, values, signatures

The outcome of a proposal is computed from its trials in the ledger; no other state is kept. So a killed search
continues where it stopped, and a complete one starts nothing when it is run again. If the trials of a proposal are in
the ledger already, from this search or any earlier run of the study, their results are used.

A proposal is valid while the study can still contain it: its values lie in the space, and its first trial has the same
signature as when it was made. Raising ``num_trials``, widening a range or adding a level keeps all outcomes; after a
change of the base or of the data the search starts anew, and the old lines stay.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.record import describe_upstream
from orchestrator.planning.plan import Facts, Plan, Skipped, make_plan, merge_plans
from orchestrator.planning.reconcile import Actions, reconcile
from orchestrator.planning.states import ABSENT, COMPLETE, FAILED, INTERRUPTED, STOPPED
from orchestrator.planning.works import Work
from orchestrator.search import sampler
from orchestrator.search.optuna_storage import ProposalView
from orchestrator.search.outcomes import RUNNING, Outcome, average_curves, compute_outcome, read_curve
from orchestrator.search.sampler import SampledPoint
from orchestrator.study.grid import Arm
from orchestrator.study.search.config import SearchConfig
from orchestrator.study.search.space import Dimension, Space, Value, find_max_epochs
from orchestrator.study.study_file import Study
from trainables.config import TrialConfig
from trainables.errors import StorageError, StudyError
from trainables.storage.completeness import EPOCHS, RESULT

PROPOSALS = "search.jsonl"
_KEYS = {"number", "round", "values", "signatures", "sampler"}
#: After this many proposals in a row that were all made before, the space counts as exhausted.
MAX_DUPLICATES = 50
#: Called with a trial that cannot start because its stage has failed, and the details of the failure.
OnFailed = Callable[[Work, dict[str, str]], None]


@dataclass(frozen=True)
class Proposal:
    """One configuration that the sampler suggested, with its trials."""

    number: int
    #: Proposals of one round are made without knowing each other's outcome.
    round: int
    point: SampledPoint
    arm: Arm
    #: Replicates of the configuration and the stages that they need.
    plan: Plan

    @property
    def signature(self) -> str:
        """Signature of the first replicate; proposals with the same signature are the same configuration."""
        return self.plan.trials[0].signature

    def as_json(self) -> dict[str, Any]:
        """Return the proposal's line in ``search.jsonl``."""
        return {
            "number": self.number,
            "round": self.round,
            "values": dict(self.point.values),
            "signatures": [trial.signature for trial in self.plan.trials],
            "sampler": {name: dict(kept) for name, kept in self.point.sampler_state.items()},
            "asked_ms": int(time.time() * 1000),
        }


class Search:
    """Adaptive search of one study: proposals, their outcomes, and the next stages and trials.

    Args:
        study: study with a ``search`` section.
        ledger: ledger of the study; only ``next_works`` writes to it.
        arms: arms of the study.
        facts: facts about data and weights.
    """

    def __init__(self, study: Study, ledger: Ledger, arms: Sequence[Arm], facts: Facts) -> None:
        assert study.search is not None
        self.config: SearchConfig = study.search
        self._study, self._ledger, self._facts = study, ledger, facts
        reasons = {arm.name: facts.missing_weights(arm.config) for arm in arms}
        self._arms = [arm for arm in arms if reasons[arm.name] is None]
        self._skipped = tuple(
            Skipped(arm.name, arm.levels, 0, reason) for arm in arms if (reason := reasons[arm.name]) is not None
        )
        if not self._arms:
            raise StudyError("looked for arms that can be searched, and all are left out for want of weights")
        self.space = Space(self._arms, self.config.space)
        #: Signature → state, as far as it is known.
        self._states: dict[str, str] = {}
        #: Signature → metric → value, None where it is undefined.
        self._measured: dict[str, dict[str, float | None]] = {}
        #: Signature → epoch → value, for trials that have ended; only with early stopping.
        self._curves: dict[str, dict[int, float]] = {}
        #: Signatures of stages and trials that were returned or marked as dispatched in this run.
        self._dispatched: set[str] = set()
        lines = _read_lines(ledger)
        self._num_lines = len(lines)
        self.proposals = [found for line in lines if (found := self._read(line)) is not None]

    def _read(self, line: Mapping[str, Any]) -> Proposal | None:
        """Return the proposal of a line, None if the study can no longer contain it."""
        values, asked = line["values"], set()

        def draw(dimension: Dimension) -> Value:
            asked.add(dimension.name)
            value = values.get(dimension.name)
            if not dimension.contains(value):
                raise LookupError(dimension.name)
            return value

        try:
            arm = self.space.build(draw)
        except (LookupError, ValidationError):
            return None
        if arm is None or asked != set(values):
            return None
        plan = self._plan_of(arm)
        if plan.trials[0].signature != line["signatures"][0]:
            return None
        return Proposal(line["number"], line["round"], SampledPoint(values, line["sampler"]), arm, plan)

    def _plan_of(self, arm: Arm) -> Plan:
        return make_plan([arm], replicates=self._study.replicates, facts=self._facts)

    # ------------------------------------------------------------------ proposals and outcomes

    @property
    def max_epochs(self) -> int:
        """Number of epochs of the longest possible training."""
        return find_max_epochs(self.config, self._arms)

    @property
    def num_distinct(self) -> int:
        """Number of different configurations that have been proposed."""
        return len({proposal.signature for proposal in self.proposals})

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be proposed."""
        return self.num_distinct >= self.config.num_trials or self.is_exhausted

    @property
    def is_exhausted(self) -> bool:
        """Whether the space seems to have no further configuration."""
        seen: set[str] = set()
        in_a_row = 0
        for proposal in self.proposals:
            in_a_row = in_a_row + 1 if proposal.signature in seen else 0
            seen.add(proposal.signature)
        return in_a_row >= MAX_DUPLICATES

    @property
    def plan(self) -> Plan:
        """All proposals so far, as a plan."""
        missing = 0 if self.is_over else self.config.num_trials - self.num_distinct
        plans = (proposal.plan for proposal in self.proposals)
        return merge_plans(plans, skipped=self._skipped, num_to_come=missing * self._study.replicates)

    def sample_configs(self) -> Iterator[TrialConfig]:
        """Yield configurations from all over the space: the unchanged arms, and the corners of the space."""
        yield from (arm.config for arm in self._arms)
        yield from (made.config for _, _, made in self.space.corners() if isinstance(made, Arm))

    def make_example_trials(self) -> list[Work]:
        """Return as many trials as are still to come, for an estimate: trials of the unchanged arms, in turn."""
        works = make_plan(self._arms, replicates=1, facts=self._facts).trials
        return [works[number % len(works)] for number in range(self.plan.num_to_come)]

    def get_outcome(self, proposal: Proposal) -> Outcome:
        """Return the outcome of a proposal, as far as it is known.

        Raises:
            StudyError: the result of a trial lacks a metric of the search.
            StorageError: a result is damaged.
        """
        signatures = [trial.signature for trial in proposal.plan.trials]
        states = [self._states.get(signature, ABSENT) for signature in signatures]
        if not set(states) <= {COMPLETE, FAILED, STOPPED}:
            return Outcome(RUNNING)
        if FAILED in states:
            return Outcome(FAILED, reason=f"{states.count(FAILED)} of {len(states)} replicates failed")
        curve = self._average_curves(signatures)
        if STOPPED in states:
            reason = f"stopped early after {max(curve, default=0)} epochs"
            return Outcome(STOPPED, reason=reason, curve=curve)
        measured = [self._measure(signature) for signature in signatures]
        undefined = [name for name in self.config.metrics if any(each[name] is None for each in measured)]
        if undefined:
            return Outcome(FAILED, reason=f"{', '.join(undefined)} undefined")
        values = {name: [each[name] for each in measured] for name in self.config.metrics}
        return replace(compute_outcome(self.config, values), curve=curve)  # type: ignore[arg-type]

    def _average_curves(self, signatures: Sequence[str]) -> dict[int, float]:
        """Return epoch → mean over the replicates that have this epoch; empty without early stopping."""
        if self.config.early_stopping is None:
            return {}
        for signature in signatures:
            if signature not in self._curves:
                lines = self._ledger.folder("trial", signature).read_lines(EPOCHS)
                self._curves[signature] = read_curve(self.config, lines)
        return average_curves([self._curves[signature] for signature in signatures])

    def _measure(self, signature: str) -> dict[str, float | None]:
        if signature not in self._measured:
            result = self._ledger.folder("trial", signature).read_json(RESULT)
            found = result["metrics"] | {"num_parameters": result["num_parameters"]}
            for name in self.config.metrics:
                if name not in found and not result["undefined"]:
                    raise StudyError(
                        f"search: looked for {name} in the result of trial {signature}, and it has "
                        f"{', '.join(sorted(found))}"
                    )
            self._measured[signature] = {name: found.get(name) for name in self.config.metrics}
        return self._measured[signature]

    def show(self) -> list[ProposalView]:
        """Return all proposals with their outcomes, for Optuna's storage."""
        return [
            ProposalView(each.number, each.signature, each.arm.levels, each.point, self.get_outcome(each))
            for each in self.proposals
        ]

    # ------------------------------------------------------------------ next stages and trials

    def update_states(self, states: Mapping[str, str], *, retry_failed: bool = False) -> None:
        """Update outcomes from signature → state. With ``retry_failed``, failed stages and trials count as open.

        Without early stopping, trials that were stopped early count as open too.
        """
        again = {trial.signature for trial in self.plan.works} if retry_failed else set()
        kept = {STOPPED} if self.config.early_stopping is not None else set()
        self._states = {
            signature: INTERRUPTED if (state == FAILED and signature in again) or state in {STOPPED} - kept else state
            for signature, state in states.items()
        }

    def mark_dispatched(self, actions: Actions) -> None:
        """Mark stages and trials as dispatched that run without having been returned by ``next_works``."""
        self._dispatched |= {work.signature for work in actions.open}

    def record_end(self, signature: str, state: str) -> None:
        """Record the state in which a stage or trial has ended."""
        self._states[signature] = state

    def next_works(self, fail: OnFailed) -> list[Work]:
        """Make the next proposals, write them to the ledger, and return the stages and trials to run for them.

        If all results of new proposals are in the ledger already, further proposals are made. Empty if other trials
        have to end first, or if the search is over.

        Raises:
            StudyError: every drawn combination of levels is left out, or a result lacks a metric of the search.
            StorageError: the ledger cannot be read or written.
        """
        while not self.is_over:
            number, room = self._find_capacity()
            if room <= 0:
                return []
            new: list[Proposal] = []
            while len(new) < room and not self.is_over:
                new.append(self._propose(number))
            works = self._find_open(new, fail)
            if works:
                return works
        return []

    def _find_capacity(self) -> tuple[int, int]:
        """Return the number of the present round, and how many proposals may be made in it now."""
        last = self.proposals[-1].round if self.proposals else -1
        pending = sum(self.get_outcome(proposal).state == RUNNING for proposal in self.proposals)
        if self.config.order == "asynchronous":
            return last + 1, self.config.parallel - pending
        size = sum(proposal.round == last for proposal in self.proposals)
        if 0 < size < self.config.parallel:
            return last, self.config.parallel - size
        return last + 1, 0 if pending else self.config.parallel

    def _propose(self, round_number: int) -> Proposal:
        history = [
            (
                each.point,
                Outcome(RUNNING) if self._is_unknown_to(each, round_number) else self.get_outcome(each),
            )
            for each in self.proposals
        ]
        number = self._num_lines
        suggestion = sampler.propose(self.config, self.space, history, number=number, seed=self._study.seed)
        proposal = Proposal(number, round_number, suggestion.point, suggestion.arm, self._plan_of(suggestion.arm))
        self._ledger.root.append_line(PROPOSALS, json.dumps(proposal.as_json(), allow_nan=False))
        self._num_lines += 1
        self.proposals.append(proposal)
        return proposal

    def _is_unknown_to(self, proposal: Proposal, round_number: int) -> bool:
        """Return whether a round ignores this proposal's outcome, so that the round is the same whenever it is made."""
        return self.config.order == "rounds" and proposal.round == round_number

    def _find_open(self, new: Sequence[Proposal], fail: OnFailed) -> list[Work]:
        """Return stages and trials of new proposals that still have to be run; fail trials whose stage has failed."""
        plan = merge_plans(proposal.plan for proposal in new)
        actions = reconcile(plan, self._states, early_stopping=self.config.early_stopping is not None)
        for work in actions.failed:
            if self._states.get(work.signature) != FAILED:
                dead = (each for each in plan.stages if self._states.get(each.signature) == FAILED)
                stage = next(each for each in dead if each.signature in work.needs)
                self.record_end(work.signature, FAILED)
                fail(work, describe_upstream(stage))
        works = [work for work in actions.open if work.signature not in self._dispatched]
        self.mark_dispatched(actions)
        return works


def _read_lines(ledger: Ledger) -> list[dict[str, Any]]:
    advice = (
        "remove it, and run the study again: a search in rounds proposes the same as before, and whatever is complete "
        "is found in the ledger"
    )
    try:
        lines = ledger.root.read_lines(PROPOSALS)
    except StorageError as error:
        raise StorageError(f"{error}; {advice}") from error
    bad = [line for line in lines if not isinstance(line, dict) or _KEYS - line.keys()]
    if bad:
        raise StorageError(f"{ledger.root.uri}/{PROPOSALS} has a line that is no proposal: {bad[0]!r:.80}; {advice}")
    return lines
