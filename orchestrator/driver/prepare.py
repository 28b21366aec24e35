"""Preparation of a study: read its data, weights and ledger, and compute its plan and the open stages and trials."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any

from orchestrator.ledger.added_metrics import check_label_maps
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.other_studies import find_elsewhere
from orchestrator.ledger.preregistration import EMPTY_REGISTRATION, Registration, update_registration
from orchestrator.ledger.usage import read_budget_status
from orchestrator.planning.budget import BudgetStatus, describe_budget
from orchestrator.planning.ceteris_paribus import (
    check_ceteris_paribus,
    describe_all_differences,
    describe_tuning,
    find_differences_of_hypotheses,
    read_settings,
)
from orchestrator.planning.feasibility import check_attainable, check_evaluated_shifts, check_external_sets
from orchestrator.planning.inputs import Inputs
from orchestrator.planning.metric_checks import check_hypotheses_defined, check_search_defined, check_tuning_defined
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.planning.reconcile import Actions, reconcile
from orchestrator.planning.states import COMPLETE
from orchestrator.planning.trial_checks import check_settings, list_split_configs
from orchestrator.search.proposals import Search
from orchestrator.study.data_sets import group_by_data_set, is_same_source
from orchestrator.study.grid import Arm
from orchestrator.study.report_config import describe_reference, find_matching_references
from orchestrator.study.study_file import Study, compute_study_sha256
from trainables.config import Execution, TrialConfig
from trainables.data.dataset import Dataset
from trainables.data.describe import has_groups
from trainables.data_config import DataConfig
from trainables.errors import StudyError
from trainables.evaluation.metrics import MAIN_METRICS
from trainables.segmentation_data_config import DatasetsData
from trainables.task_config import SegmentationTask


@dataclass(frozen=True)
class Prepared:
    """A study with its plan, the states in its ledger and the resulting actions."""

    study: Study
    ledger: Ledger
    inputs: Inputs
    plan: Plan
    #: Signature → state, of everything in the ledger.
    states: Mapping[str, str]
    actions: Actions
    about: dict[str, Any]
    #: Content of ``plan.json`` of the previous run, None if there was none.
    before: dict[str, Any] | None = None
    #: The adaptive search, None if the study runs its whole grid.
    search: Search | None = None
    #: Usage of the budget, None if the study has no budget.
    budget_status: BudgetStatus | None = None
    #: Signature of stages that other studies on the storage have completed, and this one would run → such a study.
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    #: The same of stages that were copied in this run.
    adopted: Mapping[str, str] = field(default_factory=dict)
    #: The hypotheses with the times of their registration.
    registration: Registration = EMPTY_REGISTRATION

    @property
    def grows(self) -> bool:
        """Whether a search can propose more trials: it is not over, and the budget is not spent."""
        is_spent = self.budget_status is not None and bool(self.budget_status.spent)
        return self.search is not None and not self.search.is_over and not is_spent

    @property
    def num_withheld(self) -> int:
        """Number of trials that a search will not propose because the budget is spent."""
        return 0 if self.grows else self.plan.num_to_come

    @property
    def open_configs(self) -> list[TrialConfig]:
        """Configs of the open trials; for a search that continues, also samples from its whole space."""
        known = [
            work.config for work in self.actions.open if isinstance(work.config, TrialConfig) and work.kind == "trial"
        ]
        return known + (list(self.search.sample_configs()) if self.search and self.grows else [])

    @property
    def is_open(self) -> bool:
        """Whether stages or trials will run."""
        return bool(self.actions.open) or self.grows

    def list_actions(self) -> dict[str, str]:
        """Return signature → action of ``run`` for every planned stage and trial.

        Actions are "to run", "to resume", "complete", "failed", "held back" (by the budget), "stopped early", and
        "not needed": a stage that no open trial starts from; "complete in STUDY": a stage that is copied from there.
        """
        actions = self.actions
        named = {"to run": actions.start, "to resume": actions.resume, "complete": actions.skip}
        named |= {"failed": actions.failed, "held back": actions.held_back, "stopped early": actions.stopped}
        found = {work.signature: name for name, works in named.items() for work in works}
        unneeded = [work.signature for work in actions.skip if self.states.get(work.signature) != COMPLETE]
        found |= dict.fromkeys(unneeded, "not needed")
        return found | {signature: f"complete in {study}" for signature, study in self.find_adoptable().items()}

    def find_adoptable(self) -> dict[str, str]:
        """Return ``elsewhere`` without the stages that nothing which runs starts from."""
        needed = {need for work in self.actions.open + self.actions.held_back for need in work.waits_for}
        return {signature: study for signature, study in self.elsewhere.items() if signature in needed}


def prepare(
    study: Study,
    *,
    storage: str,
    retry_failed: bool = False,
    verify_data: bool = False,
    mlflow: str | None = None,
) -> Prepared:
    """Read data, weights and ledger; return the study with its plan and actions.

    Raises:
        DataError: the data are unusable; every problem is named.
        WeightsUnavailableError: pretrained weights are not available.
        StudyError: settings do not fit the data, or ``ceteris_paribus: strict`` is not kept.
    """
    arms = study.arms()
    _check_registered(study, arms)
    differences = {} if study.search else {"differences": _find_differences(study, arms)}
    inputs = Inputs(study.execution.cache_dir, verify=verify_data)
    if study.hypotheses:
        check_external_sets(study.hypotheses, _list_external_sets(arms, inputs))
        check_hypotheses_defined(study.hypotheses, arms, inputs.dataset)
        check_evaluated_shifts(study.hypotheses, arms, inputs.dataset)
    ledger = Ledger(storage, study.study)
    search = None if study.search is None else Search(study, ledger, arms, inputs)
    candidates = study.candidates(arms)
    distinct = (arm.config for arm in candidates) if search is None else search.sample_configs()
    most = max((study.count_replicates(arm.levels) for arm in arms), default=study.replicates)
    configs = list_split_configs(distinct, inputs, replicates=most)
    check_settings(configs, inputs, device=study.execution.device)
    if study.search is not None:
        check_search_defined(study.search, arms[0].config, inputs.dataset(arms[0].config.data))
    if study.tuning is not None:
        check_tuning_defined(study.tuning, arms, inputs.dataset)
    plan = search.plan if search else _plan_grid(study, arms, candidates, inputs)
    if study.hypotheses:
        check_attainable(study.hypotheses, plan, _levels(arms), external=_list_external_sets(arms, inputs))
    states = ledger.states()
    _check_stored_maps(study, ledger, plan, states)
    about = _describe(study, arms, inputs, mlflow=mlflow) | differences
    if study.tuning is not None:
        told = describe_tuning(study.tuning, candidates, study.hypotheses, about["factors"])
        about["tuning"] = about["base"]["tuning"] | told
    before = ledger.read_plan() if ledger.root.is_intact("plan.json") else None
    actions = reconcile(plan, states, retry_failed=retry_failed, early_stopping=study.stops_early)
    elsewhere = find_elsewhere(ledger, [work for work in actions.open if work.kind == "stage"])
    prepared = Prepared(study, ledger, inputs, plan, states, actions, about, before, search, elsewhere=elsewhere)
    return update_actions(prepared, states, retry_failed=retry_failed)


def _check_stored_maps(study: Study, ledger: Ledger, plan: Plan, states: Mapping[str, str]) -> None:
    """Check that no complete trial has numbers of another label map with the name of one of the study's.

    Raises:
        ConfigError: if one has: its numbers and those of later trials would be of different classes.
    """
    if not study.evaluation.label_maps:
        return
    for work in plan.works:
        if work.kind == "trial" and states.get(work.signature) == COMPLETE:
            check_label_maps(ledger.folder("trial", work.signature), study.evaluation.label_maps)


def update_actions(prepared: Prepared, states: Mapping[str, str], *, retry_failed: bool) -> Prepared:
    """Return the study with these states, the actions that fit the budget (``reconcile``), and current hypotheses.

    Args:
        prepared: the study.
        states: signature → state of everything in the ledger.
        retry_failed: whether to dispatch failed stages and trials again.
    """
    early_stopping = prepared.study.stops_early
    known = {**states, **dict.fromkeys(prepared.elsewhere, COMPLETE)}
    actions = reconcile(prepared.plan, known, retry_failed=retry_failed, early_stopping=early_stopping)
    budget_status = read_budget_status(prepared.ledger, prepared.about["budget"], states)
    actions = actions if budget_status is None else budget_status.hold_back(actions)
    registration = update_registration(
        prepared.ledger.root, prepared.study.hypotheses, lambda: count_complete(prepared.ledger, states)
    )
    about = prepared.about | {"hypotheses": registration.as_json()}
    return replace(
        prepared, states=states, actions=actions, budget_status=budget_status, about=about, registration=registration
    )


def count_complete(ledger: Ledger, states: Mapping[str, str]) -> int:
    """Return how many trials are complete, planned or not."""
    return sum(states.get(signature) == COMPLETE for signature in (ledger.root / "trials").children())


def resolve_execution(study: Study, ledger: Ledger | None = None) -> Execution:
    """Return the execution settings of the processes that run stages and trials.

    Args:
        study: study with the user's settings.
        ledger: ledger that keeps the study's decisions on acceleration, None for a pilot, which decides nothing.
    """
    execution = study.execution
    return Execution(
        device=execution.device,
        num_threads=max(1, int(execution.cpus_per_trial)),
        cache_dir=execution.cache_dir.expanduser(),
        shift_cache_gib=execution.shift_cache_gib,
        evaluation_batch_size=execution.evaluation_batch_size,
        acceleration=(ledger.root / "acceleration").uri if ledger and is_probed(study) else None,
        early_stopping=study.stops_early,
    )


def is_probed(study: Study) -> bool:
    """Return whether ``execution.acceleration: probe`` is asked for and means something: it times classifications."""
    return study.execution.acceleration == "probe" and not isinstance(study.task, SegmentationTask)


def find_git_commit() -> str | None:
    """Return the commit of the working folder, with ``-dirty`` if there are changes, None outside git."""
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
    """Return the description of the study that ``plan.json`` holds for the report."""
    base = study.describe()
    data_sets = group_by_data_set(arms)
    return {
        **({"search": base["search"] | {"is_oracle": study.search.is_oracle}} if study.search else {}),
        "study": study.study,
        "question": study.question,
        "notes": study.report.notes,
        "factors": _levels(arms),
        "replicates": study.replicates,
        "seed": study.seed,
        "data": _describe_data(_find_main_data(study, arms), inputs),
        **(
            {
                "data_sets": {
                    label: {"arms": [arm.name for arm in found], **_describe_data(found[0].config.data, inputs)}
                    for label, found in data_sets.items()
                }
            }
            if len(data_sets) > 1
            else {}
        ),
        "mlflow": mlflow,
        "cache_dir": str(study.execution.cache_dir),
        "metric": MAIN_METRICS[study.task.kind],
        "reference": describe_reference(study.report, arms),
        "families": study.report.families,
        "budget": describe_budget(study.execution.budget, study.execution.price_per_gpu_hour),
        "git_commit": find_git_commit(),
        "versions": {
            name: _version(name) for name in ("robustsweep", "ray", "torch", "torchvision", "mlflow", "numpy")
        },
        "written_ms": int(time.time() * 1000),
        "study_sha256": compute_study_sha256(study),
        "base": base,
    }


def _check_registered(study: Study, arms: Sequence[Arm]) -> None:
    """Check that validation can choose the model to register.

    Raises:
        StudyError: arms are trained, and validated, on different ones of several data sets.
    """
    trained: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for arm in arms:
        if isinstance(arm.config.data, DatasetsData):
            trained.setdefault(tuple(arm.config.data.datasets), set()).add(arm.config.data.trained)
    if study.execution.register is not None and any(len(each) > 1 for each in trained.values()):
        raise StudyError(
            f"execution.register: found {study.execution.register}, and arms that are trained on different data sets "
            "(data.train_on), whose validation images do not compare; leave it out, and choose by the images of one of "
            f"them: robustsweep select {study.study} --by dataset/<name>/<metric> --register <name>"
        )


def _find_main_data(study: Study, arms: Sequence[Arm]) -> DataConfig:
    """Return the data of the base, or of the first arm if no arm is on the base's data set."""
    has_base = not arms or any(is_same_source(study.data, arm.config.data) for arm in arms)
    return study.data if has_base else arms[0].config.data


def _describe_data(config: DataConfig, inputs: Inputs) -> dict[str, Any]:
    data = inputs.dataset(config)
    sets = data.splits | data.external
    return {
        "name": data.name,
        "kind": config.kind,
        "classes": list(data.classes),
        "fingerprint": data.fingerprint,
        "num_images": {name: len(images) for name, images in sets.items()},
        "quarantined": [vars(bad) for bad in inputs.quarantined],
        "copies": data.copies,
        "similar": {"counts": data.similar.counts, "unchecked": data.similar.unchecked},
        "conversions": data.conversions,
        "num_patients": {name: len(set(images.groups.tolist())) for name, images in sets.items()}
        if has_groups(data)
        else None,
        "num_sites": {name: count for name, images in sets.items() if (count := len(set(images.sites) - {""}))},
        "modality": data.modality,
        **({"components": _describe_components(data)} if len(data.components) > 1 else {}),
    }


def _describe_components(data: Dataset) -> dict[str, dict[str, int | None]]:
    """Return name of each data set in one → numbers of its test images, and of their patients if they are known."""
    test, known = data.splits["test"], has_groups(data)
    return {
        name: {
            "num_images": int((of := test.labels == index).sum()),
            "num_patients": len(set(test.groups[of].tolist())) if known else None,
        }
        for index, name in enumerate(data.components)
    }


def _find_differences(study: Study, arms: Sequence[Arm]) -> dict[str, Any]:
    """Return the fields in which the sides of comparisons differ beyond their factors, as ``plan.json`` holds them.

    Raises:
        StudyError: if the study asks that there be none, and a hypothesis has some.
    """
    factors = _levels(arms)
    configs = [arm.config.model_dump(mode="json") for arm in arms]
    tuned = tuple(study.tuning.space) if study.tuning else ()
    settings = read_settings([arm.levels for arm in arms], configs, study.grid(), tuned=tuned)
    found = find_differences_of_hypotheses(study.hypotheses, settings, factors)
    if study.ceteris_paribus == "strict":
        check_ceteris_paribus(found)
    return describe_all_differences(settings, found, factors)


def _plan_grid(study: Study, arms: Sequence[Arm], candidates: Sequence[Arm], inputs: Inputs) -> Plan:
    return make_plan(
        candidates,
        replicates=study.count_replicates,
        facts=inputs,
        references=find_matching_references(study.report, arms),
    )


def _list_external_sets(arms: Sequence[Arm], inputs: Inputs) -> dict[str, list[str]]:
    """Return name of each arm → external sets that it is tested on."""
    return {arm.name: list(inputs.dataset(arm.config.data).external) for arm in arms}


def _levels(arms: Sequence[Arm]) -> dict[str, list[str]]:
    """Return factor → its levels in the order of the file."""
    levels: dict[str, dict[str, None]] = {}
    for arm in arms:
        for factor, level in arm.levels.items():
            levels.setdefault(factor, {})[level] = None
    return {factor: list(found) for factor, found in levels.items()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
