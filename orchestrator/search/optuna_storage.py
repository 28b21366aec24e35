"""A search as an Optuna study in a database, so that ``optuna-dashboard`` and notebooks can look at it.

A projection, like MLflow: made from the ledger, never read back, off the scheduling loop; losing it loses nothing, the
next ``run`` makes it again. Each proposal is one trial there and carries its number and signature; a trial that carries
none and never ended is an orphan and told as failed.
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
from orchestrator.study.search_config import SearchConfig
from orchestrator.study.search_space import Space
from trainables.errors import StorageError, StudyError, redact
from trainables.frozen import canonical_json

if TYPE_CHECKING:
    import optuna

#: File beside the ledger.
DATABASE = "optuna.db"
_SCHEMES = ("sqlite", "postgresql", "mysql")
#: How long an unreachable database may hold the end of a study.
PATIENCE_SECONDS = 60.0
_CONNECT_SECONDS = 10
#: Attribute of Optuna's trial: which proposal it is; of Optuna's study: what its values mean.
_PROPOSAL, _MEANING = "robustsweep.proposal", "robustsweep.meaning"
#: What ``Study.set_metric_names`` writes; it warns that its interface may change.
_METRIC_NAMES = "study:metric_names"
#: System attribute of a trial in which Optuna 4 kept by how much each constraint is broken: a list, 0 or less is kept.
_CONSTRAINTS = "constraints"


def resolve_storage(ledger: Ledger, value: str | None) -> str | None:
    """Return the address of the Optuna storage, None where there is none: the ledger is remote and none was given.

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
class Shown:
    """One proposal as the database shows it."""

    number: int
    signature: str
    #: Factor or field → what the trial has.
    levels: dict[str, str]
    point: SampledPoint
    outcome: Outcome

    @property
    def marks(self) -> dict[str, Any]:
        """User attributes of Optuna's trial."""
        reason = {"robustsweep.reason": self.outcome.reason} if self.outcome.reason else {}
        return {_PROPOSAL: f"{self.number}/{self.signature}", "signature": self.signature, **reason} | self.levels


class Projection:
    """Brings proposals into a database.

    Args:
        uri: of the Optuna storage.
        name: of the study.
        search: what it is about.
        space: its space.
    """

    def __init__(self, uri: str, name: str, search: SearchConfig, space: Space) -> None:
        self._uri, self._name, self._search, self._space = uri, name, search, space
        self._storage: optuna.storages.BaseStorage | None = None

    def project(self, shown: Sequence[Shown]) -> None:
        """Make the database show exactly these proposals; what it shows already is not touched.

        Raises:
            StorageError: there is a study of this name that is not RobustSweep's.
            Exception: whatever Optuna and the database's driver raise.
        """
        from optuna.trial import TrialState

        storage, study = self._open()
        own = storage.get_study_id_from_name(self._name)
        trials = storage.get_all_trials(own)
        known = {trial.user_attrs.get(_PROPOSAL): trial for trial in trials}  # the last one that says so
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

    def _draw(self, shown: Shown) -> optuna.trial.FrozenTrial:
        """Return a proposal as Optuna's trial; what it breaks is there as Optuna 4 wrote it, too: the dashboard's way.

        Optuna 5 reads both, so a constraint has two entries there; which trials are feasible is the same.
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
        self._forget_other_meaning(self._storage)
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

    def _forget_other_meaning(self, storage: optuna.storages.BaseStorage) -> None:
        """Remove our study if its values mean something else now: a database holds no two meanings of one name."""
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
        """Digest of what values and parameters of a trial mean."""
        said = self._search.model_dump(mode="json", include={"space", "objectives", "constraints", "aggregate"})
        said |= {"constraints_key": _CONSTRAINTS} if self._search.constraints else {}  # older pictures are drawn again
        said |= {"factors": [[each.name, *each.choices] for each in self._space.factors]}
        return hashlib.sha256(canonical_json(said).encode()).hexdigest()[:16]


def _key(trial: optuna.trial.FrozenTrial) -> tuple[Any, Any]:
    return trial.state, trial.values


class Exporter:
    """Keeps a database up to date from a thread of its own.

    Args:
        projection: what brings the proposals there.
    """

    def __init__(self, projection: Projection) -> None:
        self._projection = projection
        self._changed, self._ended = threading.Event(), threading.Event()
        self._latest: Sequence[Shown] = ()
        #: The last thing that went wrong, in words; None when the database shows everything.
        self.problem: str | None = None
        self._thread = threading.Thread(target=self._run, name="optuna-storage", daemon=True)
        self._thread.start()

    def show(self, shown: Sequence[Shown]) -> None:
        """Take what is to be shown; returns at once."""
        self._latest = shown
        self._changed.set()

    def finish(self, timeout_seconds: float = PATIENCE_SECONDS) -> str | None:
        """Bring the last of it there; return what went wrong, None when everything is shown."""
        self._ended.set()
        self._changed.set()
        self._thread.join(timeout_seconds)
        return f"no answer after {timeout_seconds:.0f} s" if self._thread.is_alive() else self.problem

    def _run(self) -> None:
        is_last = False
        while not is_last:
            self._changed.wait()
            is_last = self._ended.is_set()  # before it is read what to show
            self._changed.clear()
            try:
                self._projection.project(self._latest)
                self.problem = None
            except Exception as error:  # noqa: BLE001 - the thread's boundary: a picture of a search never stops it
                self.problem = redact(f"{type(error).__name__}: {error}".splitlines()[0])
