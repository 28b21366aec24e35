"""Registration of the chosen model at the end of a run (``execution.register: best``), once per state of the study.

    registered.json   the MLflow store that has the models, and the state of the study that they were chosen from

Without the file the model is chosen, exported and checked again; the same weights are never registered twice
(``registry``).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from orchestrator.ledger.derived import compute_state
from orchestrator.ledger.ledger import Ledger
from orchestrator.selection.ranking import SelectionCriteria
from orchestrator.selection.select_model import SelectOptions, mlflow_uri, select_model
from orchestrator.study.study_file import Study
from trainables.errors import redact

#: Alias of the registered version.
ALIAS = "best"
REGISTERED = "registered.json"


def list_models(plan: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the name of each model to register → the data set whose arms it is chosen from, None for a single one."""
    study = str(plan["study"])
    return {f"{study}-{label}": label for label in plan.get("data_sets", {})} or {study: None}


def register_best(study: Study, *, storage: str, mlflow: str | None, name: str, data_set: str | None) -> str | None:
    """Register the model that in-distribution validation chooses; return its URI, None if it is known to be registered.

    Args:
        study: a complete study, shipped to MLflow.
        storage: root of the ledger.
        mlflow: value of ``--mlflow``.
        name: name of the registered model.
        data_set: data set whose arms are ranked, in a study on several.

    Raises:
        RobustSweepError: any of its subclasses; the model is not registered.
    """
    ledger = Ledger(storage, study.study)
    store = redact(mlflow_uri(study, ledger, mlflow))
    said = {"store": store, "state": compute_state(ledger.read_plan(), ledger.states())}
    known = ledger.root.read_json(REGISTERED) if ledger.root.is_intact(REGISTERED) else {}
    models = known["models"] if said.items() <= known.items() else {}
    if name in models:
        return None
    options = SelectOptions(SelectionCriteria(), register=name, alias=ALIAS, data_set=data_set)
    done = select_model(study, options, storage=storage, mlflow=mlflow, write_line=lambda line: None)["registered"]
    ledger.root.write_json(REGISTERED, said | {"models": models | {name: done["version"]}})
    return f"{done['uri']} (version {done['version']})"


def describe_command(study: Study, *, storage: str, mlflow: str | None, name: str, data_set: str | None) -> str:
    """Return the command that registers a model by hand, without passwords. Arguments as ``register_best``."""
    words = ["robustsweep", "select", study.study, "--register", name, "--alias", ALIAS, "--storage", redact(storage)]
    words += [] if mlflow is None else ["--mlflow", redact(mlflow)]
    return shlex.join([*words, *([] if data_set is None else ["--data-set", data_set])])
