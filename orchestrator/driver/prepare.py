"""Look up a study: its data, weights and ledger, and from them what ``plan`` shows and ``run`` needs."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.preregistration import NOTHING_CLAIMED, Registration, look_up
from orchestrator.ledger.usage import read_standing
from orchestrator.planning.budget import Standing, describe_budget
from orchestrator.planning.feasibility import check_evaluated_shifts, check_external_sets
from orchestrator.planning.inputs import Inputs
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.planning.reconcile import Actions, reconcile
from orchestrator.planning.states import COMPLETE
from orchestrator.planning.trial_checks import check_batches
from orchestrator.search.proposals import Search
from orchestrator.study.grid import Arm
from orchestrator.study.report_config import describe_reference
from orchestrator.study.study_file import Study, compute_study_sha256
from trainables.config import Execution, TrialConfig


@dataclass(frozen=True)
class Prepared:
    """A study with its plan, the states in its ledger, and what is to be done."""

    study: Study
    ledger: Ledger
    inputs: Inputs
    plan: Plan
    #: Signature → state, of everything in the ledger.
    states: Mapping[str, str]
    actions: Actions
    about: dict[str, Any]
    #: ``plan.json`` of the run before, None when there was none.
    before: dict[str, Any] | None = None
    #: Where the study searches instead of going through its grid.
    search: Search | None = None
    #: To the budget, None without one.
    standing: Standing | None = None
    #: The hypotheses, and when they were written.
    registration: Registration = NOTHING_CLAIMED

    @property
    def grows(self) -> bool:
        """Whether a search will propose more, if its trials end and the budget lasts."""
        is_spent = self.standing is not None and bool(self.standing.spent)
        return self.search is not None and not self.search.is_over and not is_spent

    @property
    def num_withheld(self) -> int:
        """How many trials a search will not propose because the budget is spent."""
        return 0 if self.grows else self.plan.num_to_come

    @property
    def open_configs(self) -> list[TrialConfig]:
        """Configs of the trials that will run; of a search that goes on, some from all over its space."""
        known = [work.config for work in self.actions.open if isinstance(work.config, TrialConfig)]
        return known + (list(self.search.samples()) if self.search and self.grows else [])

    @property
    def is_open(self) -> bool:
        """Whether something will run."""
        return bool(self.actions.open) or self.grows


def prepare(study: Study, *, storage: str, retry_failed: bool = False, mlflow: str | None = None) -> Prepared:
    """Look up data, weights and ledger; return the plan and what is to be done.

    Raises:
        DataError: the data are unusable; every problem is named.
        WeightsUnavailableError: pretrained weights cannot be had.
        StudyError: settings do not fit the data.
    """
    inputs = Inputs(study.execution.cache_dir)
    arms = study.arms()
    if study.hypotheses:
        external = {name for arm in arms for name in inputs.dataset(arm.config.data).external}
        check_external_sets(study.hypotheses, sorted(external))
        check_evaluated_shifts(study.hypotheses, arms, inputs.dataset)
    ledger = Ledger(storage, study.study)
    search = None if study.search is None else Search(study, ledger, arms, inputs)
    check_batches((arm.config for arm in arms) if search is None else search.samples(), inputs)
    plan = search.plan if search else make_plan(arms, replicates=study.replicates, facts=inputs)
    states = ledger.states()
    about = _describe(study, arms, inputs, mlflow=mlflow)
    before = ledger.read_plan() if ledger.root.is_intact("plan.json") else None
    actions = reconcile(plan, states, retry_failed=retry_failed, early_stopping=study.stops_early)
    prepared = Prepared(study, ledger, inputs, plan, states, actions, about, before, search)
    return decide(prepared, states, retry_failed=retry_failed)


def decide(prepared: Prepared, states: Mapping[str, str], *, retry_failed: bool) -> Prepared:
    """Return a study with what is to be done now (``reconcile``), as far as the budget has room for it.

    Args:
        prepared: the study.
        states: signature → state of everything in the ledger.
        retry_failed: hand out what failed before as well.
    """
    early_stopping = prepared.study.stops_early
    actions = reconcile(prepared.plan, states, retry_failed=retry_failed, early_stopping=early_stopping)
    standing = read_standing(prepared.ledger, prepared.about["budget"], states)
    actions = actions if standing is None else standing.hold_back(actions)
    registration = look_up(
        prepared.ledger.root, prepared.study.hypotheses, lambda: count_complete(prepared.ledger, states)
    )
    about = prepared.about | {"hypotheses": registration.as_json()}
    return replace(prepared, states=states, actions=actions, standing=standing, about=about, registration=registration)


def count_complete(ledger: Ledger, states: Mapping[str, str]) -> int:
    """Return how many trials are complete, planned or not."""
    return sum(states.get(signature) == COMPLETE for signature in (ledger.root / "trials").children())


def resolve_execution(study: Study, ledger: Ledger | None = None) -> Execution:
    """Return what a worker has to know about its machine's share.

    Args:
        study: what the user asked for.
        ledger: where the study's decisions on acceleration are kept; None: a pilot, which decides nothing.
    """
    execution = study.execution
    return Execution(
        device=execution.device,
        num_threads=max(1, int(execution.cpus_per_trial)),
        cache_dir=execution.cache_dir.expanduser(),
        shift_cache_gib=execution.shift_cache_gib,
        evaluation_batch_size=execution.evaluation_batch_size,
        acceleration=(ledger.root / "acceleration").uri if ledger and execution.acceleration == "probe" else None,
        early_stopping=study.stops_early,
    )


def find_git_commit() -> str | None:
    """Return the commit of the working folder, with ``-dirty`` where there are changes; None outside git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def _describe(study: Study, arms: Sequence[Arm], inputs: Inputs, *, mlflow: str | None) -> dict[str, Any]:
    """What the report has to know about the study, as ``plan.json`` holds it."""
    data = inputs.dataset(study.data)
    sets = data.splits | data.external
    base = study.describe()
    return {
        **({"search": base["search"] | {"is_oracle": study.search.is_oracle}} if study.search else {}),
        "study": study.study,
        "question": study.question,
        "factors": {factor: list(levels) for factor, levels in _levels(arms).items()},
        "replicates": study.replicates,
        "seed": study.seed,
        "data": {
            "name": data.name,
            "kind": study.data.kind,
            "classes": list(data.classes),
            "fingerprint": data.fingerprint,
            "num_images": {name: len(images) for name, images in sets.items()},
            "quarantined": [vars(bad) for dataset in inputs.datasets for bad in dataset.quarantined],
            "modality": data.modality,
        },
        "mlflow": mlflow,
        "cache_dir": str(study.execution.cache_dir),
        "reference": describe_reference(study.report, arms),
        "budget": describe_budget(study.execution.budget, study.execution.price_per_gpu_hour),
        "git_commit": find_git_commit(),
        "versions": {
            name: _version(name) for name in ("robustsweep", "ray", "torch", "torchvision", "mlflow", "numpy")
        },
        "written_ms": int(time.time() * 1000),
        "study_sha256": compute_study_sha256(study),
        "base": base,
    }


def _levels(arms: Sequence[Arm]) -> dict[str, dict[str, None]]:
    """Factor → its levels in the order of the file (keys of a dict)."""
    levels: dict[str, dict[str, None]] = {}
    for arm in arms:
        for factor, level in arm.levels.items():
            levels.setdefault(factor, {})[level] = None
    return levels


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
