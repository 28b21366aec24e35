"""Optuna study in a database that shows a search, for ``optuna-dashboard`` and notebooks.

Like MLflow, it is a projection of the ledger: never read back, and written outside the scheduling loop. Losing it
costs nothing, because the next ``run`` writes it again. Each proposal is one Optuna trial, which carries its number and
signature; an unfinished trial that belongs to no present proposal is an orphan and is marked as failed.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.ledger.databases import create_database, name_driver
from orchestrator.ledger.ledger import Ledger
from orchestrator.search.outcomes import RUNNING, Outcome
from orchestrator.search.sampler import SampledPoint, make_directions, make_trial
from orchestrator.study.search.config import SearchConfig
from orchestrator.study.search.space import Space
from trainables.errors import StorageError, StudyError, redact
from trainables.frozen import canonical_json

if TYPE_CHECKING:
    import optuna

#: Database in the ledger's folder, used by default.
DATABASE = "optuna.db"
_SCHEMES = ("sqlite", "postgresql", "mysql")
#: How long an unreachable database may delay the end of a study.
PATIENCE_SECONDS = 60.0
_CONNECT_SECONDS = 10
#: User attributes: number and signature of a trial's proposal; digest of the meaning of the study's values.
_PROPOSAL, _MEANING = "robustsweep.proposal", "robustsweep.meaning"
#: System attribute that ``Study.set_metric_names`` writes; that method warns that its interface may change.
_METRIC_NAMES = "study:metric_names"
#: System attribute of a trial in which Optuna 4 stored the excess over each constraint: a list; 0 or less satisfies it.
_CONSTRAINTS = "constraints"


def resolve_storage(ledger: Ledger, value: str | None) -> str | None:
    """Return the address of the Optuna storage, None if the ledger is remote and no address was given.

    Raises:
        StudyError: Optuna cannot open such an address.
    """
    if value is None:
        return f"sqlite:///{ledger.root.uri}/{DATABASE}" if ledger.root.is_local else None
    scheme, _, rest = value.partition("://")
    if scheme.split("+")[0] not in _SCHEMES or not rest or ":memory:" in rest:
        raise StudyError(
            f"execution.optuna: found {redact(value)!r}, expected an address starting with one of "
            f"{', '.join(_SCHEMES)}, for example sqlite:///runs/optuna.db or postgresql://user@host/optuna"
        )
    if scheme != "sqlite":
        return name_driver(value)
    return f"sqlite:///{Path(rest[1:]).expanduser().absolute()}"


@dataclass(frozen=True)
class ProposalView:
    """One proposal as the database shows it."""

    number: int
    signature: str
    #: Factor or field → level or value of the trial.
    levels: dict[str, str]
    point: SampledPoint
    outcome: Outcome

    @property
    def marks(self) -> dict[str, Any]:
        """User attributes of Optuna's trial."""
        reason = {"robustsweep.reason": self.outcome.reason} if self.outcome.reason else {}
        return {_PROPOSAL: f"{self.number}/{self.signature}", "signature": self.signature, **reason} | self.levels


class StorageWriter:
    """Writer of proposals to a database.

    Args:
        uri: address of the Optuna storage.
        name: name of the study.
        search: configuration of the search.
        space: space of the search.
    """

    def __init__(self, uri: str, name: str, search: SearchConfig, space: Space) -> None:
        self._uri, self._name, self._search, self._space = uri, name, search, space
        self._storage: optuna.storages.BaseStorage | None = None

    def project(self, shown: Sequence[ProposalView]) -> None:
        """Add and update trials so that the database shows these proposals; up-to-date trials are not touched.

        Raises:
            StorageError: the database has a study of this name that is not RobustSweep's.
            Exception: any error of Optuna or of the database's driver.
        """
        from optuna.trial import TrialState

        storage, study = self._open()
        own = storage.get_study_id_from_name(self._name)
        trials = storage.get_all_trials(own)
        known = {trial.user_attrs.get(_PROPOSAL): trial for trial in trials}  # the last trial of each proposal
        for each in shown:
            wanted = self._draw(each)
            found = known.get(each.marks[_PROPOSAL])
            if found is None or (found.state.is_finished() and (found.state, found.values) != _key(wanted)):
                study.add_trial(wanted)
            elif not found.state.is_finished() and each.outcome.state != RUNNING:
                place = storage.get_trial_id_from_study_id_trial_number(own, found.number)
                for key, value in wanted.system_attrs.items():
                    storage.set_trial_system_attr(place, key, value)
                for epoch, value in wanted.intermediate_values.items():
                    storage.set_trial_intermediate_value(place, epoch, value)
                for mark in each.marks.keys() - found.user_attrs.keys():  # why it failed, or was stopped
                    storage.set_trial_user_attr(place, mark, each.marks[mark])
                storage.set_trial_state_values(place, wanted.state, wanted.values)
        ours = {each.marks[_PROPOSAL] for each in shown}
        for trial in trials:
            if not trial.state.is_finished() and trial.user_attrs.get(_PROPOSAL) not in ours:
                place = storage.get_trial_id_from_study_id_trial_number(own, trial.number)
                storage.set_trial_state_values(place, TrialState.FAIL)

    def _draw(self, shown: ProposalView) -> optuna.trial.FrozenTrial:
        """Return a proposal as an Optuna trial, with constraints also in Optuna 4's format, which the dashboard reads.

        Optuna 5 reads both, so each constraint has two entries there; the same trials are feasible.
        """
        trial = make_trial(self._space, shown.point, shown.outcome, marks=shown.marks)
        if trial.constraints:
            trial.system_attrs = {**trial.system_attrs, _CONSTRAINTS: list(trial.constraints.values())}
        return trial

    def _open(self) -> tuple[optuna.storages.BaseStorage, optuna.Study]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        if self._storage is None:
            is_sqlite = self._uri.startswith("sqlite")
            if is_sqlite:
                create_database(self._uri, optuna.storages.RDBStorage)
            arguments = {"timeout" if is_sqlite else "connect_timeout": _CONNECT_SECONDS}
            kept = {"connect_args": arguments, "pool_pre_ping": not is_sqlite}
            self._storage = optuna.storages.get_storage(optuna.storages.RDBStorage(self._uri, engine_kwargs=kept))
        self._remove_outdated_study(self._storage)
        study = optuna.create_study(
            storage=self._storage,
            study_name=self._name,
            directions=make_directions(self._search),
            load_if_exists=True,
        )
        if _MEANING not in study.user_attrs:
            study.set_user_attr(_MEANING, self._meaning)
            names = [objective.metric for objective in self._search.objectives]
            own = self._storage.get_study_id_from_name(self._name)
            self._storage.set_study_system_attr(own, _METRIC_NAMES, names)
        return self._storage, study

    def _remove_outdated_study(self, storage: optuna.storages.BaseStorage) -> None:
        """Remove our study from the database if the meaning of its values has changed since it was written."""
        import optuna

        if self._name not in optuna.get_all_study_names(storage):
            return
        own = storage.get_study_id_from_name(self._name)
        meaning = storage.get_study_user_attrs(own).get(_MEANING)
        if meaning is None and storage.get_n_trials(own):
            raise StorageError(
                f"the Optuna storage {redact(self._uri)} has a study {self._name!r} that is not RobustSweep's; rename "
                "this study, or give another database with execution.optuna"
            )
        if meaning != self._meaning:
            optuna.delete_study(study_name=self._name, storage=storage)

    @property
    def _meaning(self) -> str:
        """Digest of the settings that define the meaning of a trial's values and parameters."""
        said = self._search.model_dump(mode="json", include={"space", "objectives", "constraints", "aggregate"})
        said |= {"constraints_key": _CONSTRAINTS} if self._search.constraints else {}  # rewrites older databases
        said |= {"factors": [[each.name, *each.choices] for each in self._space.factors]}
        return hashlib.sha256(canonical_json(said).encode()).hexdigest()[:16]


def _key(trial: optuna.trial.FrozenTrial) -> tuple[Any, Any]:
    return trial.state, trial.values


class Exporter:
    """Thread that keeps a database up to date.

    Args:
        projection: writer to the database.
    """

    def __init__(self, projection: StorageWriter) -> None:
        self._projection = projection
        self._changed, self._ended = threading.Event(), threading.Event()
        self._latest: Sequence[ProposalView] = ()
        #: Last error, in words; None if the last write succeeded.
        self.problem: str | None = None
        self._thread = threading.Thread(target=self._run, name="optuna-storage", daemon=True)
        self._thread.start()

    def show(self, shown: Sequence[ProposalView]) -> None:
        """Set the proposals that the database has to show. Returns at once."""
        self._latest = shown
        self._changed.set()

    def finish(self, timeout_seconds: float = PATIENCE_SECONDS) -> str | None:
        """Write the last changes; return the error in words, None if the database shows everything."""
        self._ended.set()
        self._changed.set()
        self._thread.join(timeout_seconds)
        return f"no answer after {timeout_seconds:.0f} s" if self._thread.is_alive() else self.problem

    def _run(self) -> None:
        is_last = False
        while not is_last:
            self._changed.wait()
            is_last = self._ended.is_set()  # read before ``_latest``, so the last pass writes the last proposals
            self._changed.clear()
            try:
                self._projection.project(self._latest)
                self.problem = None
            except Exception as error:  # noqa: BLE001 - the thread's boundary: a projection never stops the search
                self.problem = redact(f"{type(error).__name__}: {error}".splitlines()[0])
