"""RobustSweep from Python: the names below, each imported when it is first used.

>>> import robustsweep
>>> study = robustsweep.load_study("study.yaml")
>>> robustsweep.run(study)
>>> robustsweep.results(study).trials
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.study.study_file import Study, load_study
    from robustsweep.api import StudyResults, plan, results, run, run_trial, status
    from trainables.config import TrialConfig
    from trainables.exported.folder import load_exported

__all__ = [
    "Study",
    "StudyResults",
    "TrialConfig",
    "__version__",
    "load_exported",
    "load_study",
    "plan",
    "results",
    "run",
    "run_trial",
    "status",
]

#: Name → module that defines it.
_HOMES = {
    "Study": "orchestrator.study.study_file",
    "load_study": "orchestrator.study.study_file",
    "TrialConfig": "trainables.config",
    "load_exported": "trainables.exported.folder",
    **dict.fromkeys(("StudyResults", "plan", "results", "run", "run_trial", "status"), "robustsweep.api"),
}


def __getattr__(name: str) -> Any:
    """Return a public name, importing its module."""
    if name == "__version__":
        from importlib import metadata  # takes longer than the rest of this module

        return metadata.version("robustsweep")
    if name not in _HOMES:
        raise AttributeError(f"module 'robustsweep' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
