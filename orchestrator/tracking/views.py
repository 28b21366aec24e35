"""Shared views of a study's runs page in MLflow: *by arm* with charts of the arms, *trials* with a table of all trials.

MLflow keeps a view as an experiment tag ``mlflow.sharedViewState.<key>``: JSON with a name, times and a state, which is
``deflate;`` and the base64 of compressed JSON. The format is internal to MLflow, so a view is written only where the
server's version is known (``is_known``), and a test opens it in a browser. Pure: no network, no clock, no MLflow.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainables.evaluation.metrics import EVALUATED, MAIN_CALIBRATION, MAIN_METRICS, name_over_shifts

#: Releases of MLflow, without the last number, whose pages show these views.
KNOWN_VERSIONS = ("3.17",)
VIEW_TAG = "mlflow.sharedViewState."
BY_ARM, TRIALS = "by-arm", "trials"
#: Key of a view → its title.
TITLES = {BY_ARM: "by arm", TRIALS: "trials"}
#: Name of the report among the artifacts of the study's own run.
REPORT = "report.html"
#: At most this many severity curves are opened, worst first; the others are one click away.
MAX_CURVES = 24
#: More lines than this cannot be told apart: MLflow then shows the first ones of the table, the most robust.
MAX_LINES = 20
#: Columns that every table has, by MLflow's names: the check box, the name, when, how long.
_FIRST_COLUMNS, _LAST_COLUMNS = ("1", "attributes.`Run Name`"), ("runDateAndNestInfo", "duration")
_SHOW_ALL, _SHOW_FIRST = "SHOW_ALL", "FIRST_20_RUNS"
#: End of the key under which an arm's run holds lower end, mean and upper end at every severity: a band in a chart.
BAND = ".band"


@dataclass(frozen=True)
class Shown:
    """Content of a study for its views."""

    #: Factors with more than one level, in the study file's order, as the keys of params.
    factors: tuple[str, ...]
    #: Whether there is a run per arm; otherwise every arm has one trial.
    has_arm_runs: bool
    num_arms: int
    #: Shifts with a severity curve, the worst first.
    shifts: tuple[str, ...] = ()
    #: Whether every arm has enough replicates for intervals.
    has_bands: bool = False
    #: Keys of all metrics that runs have; MLflow would open a chart of each one that is in no section of the view.
    keys: frozenset[str] = field(default=frozenset())
    created_ms: int = 0
    #: Metric of the charts, and the one of calibration.
    metric: str = MAIN_METRICS["classification"]
    calibration: str = MAIN_CALIBRATION["classification"]

    @property
    def mean(self) -> str:
        """Headline number of the mean over shifts."""
        return name_over_shifts("mean", self.metric)

    @property
    def worst(self) -> str:
        """Headline number of the worst shift."""
        return name_over_shifts("worst_shift", self.metric)

    @property
    def headlines(self) -> tuple[str, ...]:
        """Columns of the tables after the factors."""
        shifted = name_over_shifts("mean", self.calibration)
        return (f"id/{self.metric}", self.mean, self.worst, shifted, f"validation/{self.metric}")


def is_known(version: str | None) -> bool:
    """Return whether the pages of this MLflow release are known to show the views."""
    return version is not None and ".".join(version.split(".")[:2]) in KNOWN_VERSIONS


def make_path(experiment_id: str, key: str | None) -> str:
    """Return the path of a view, or of the plain runs page, below a server's address."""
    path = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    if key is None:
        return path
    return f"{path}&viewStateShareKey={key}&compareRunsMode={'TABLE' if key == TRIALS else 'CHART'}"


def make_report_path(experiment_id: str, run_id: str) -> str:
    """Return the path of the report, an artifact of the study's own run, below a server's address."""
    return f"#/experiments/{experiment_id}/runs/{run_id}/artifacts/{REPORT}"


def make_views(shown: Shown) -> dict[str, str]:
    """Return experiment tag → value of both views; the same content always gives the same value."""
    return {f"{VIEW_TAG}{key}": _encode(key, make_state(key, shown), shown.created_ms) for key in TITLES}


def decode_state(value: str) -> dict[str, Any]:
    """Return the state in the value of a view's tag."""
    text = json.loads(value)["state"].removeprefix("deflate;")
    state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(text)))
    return state


def make_state(key: str, shown: Shown) -> dict[str, Any]:
    """Return the state of a view, as MLflow 3.17 has it in the browser."""
    charts, names = (_arm_charts if key == BY_ARM else _trial_charts)(shown)
    is_of_arms = key == BY_ARM and shown.has_arm_runs
    few = shown.num_arms <= MAX_LINES
    columns = [f"params.`{factor}`" for factor in shown.factors]
    columns += [] if is_of_arms else ["params.`replicate`"]
    columns += [f"metrics.`{name}`" for name in shown.headlines]
    return {
        "searchFilter": f"tags.`robustsweep.kind` = '{'arm' if is_of_arms else 'trial'}'",
        # Sorted by start, MLflow folds runs under the study's run and draws no chart of them.
        "orderByKey": f"metrics.`{shown.mean}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": [*_FIRST_COLUMNS, *columns, *_LAST_COLUMNS],
        "columnWidths": {"attributes.`Run Name`": 280},
        "runsHiddenMode": _SHOW_ALL if key == BY_ARM and few else _SHOW_FIRST,
        "compareRunCharts": charts,
        "compareRunSections": _sections(names, shown.keys),
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        # Only of groups MLflow draws bands, only without groups parallel coordinates; each arm is one run as it is.
        "groupBy": {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": "tag", "groupByData": "robustsweep.arm"}],
        }
        if key == BY_ARM and shown.has_bands
        else None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _arm_charts(shown: Shown) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the charts of *by arm*, and section → its heading."""
    end = BAND if shown.has_bands else ""
    charts = [
        *(() if shown.has_bands else (_parallel(shown),)),
        _bar("answer", shown.mean),
        _bar("answer", shown.worst),
        _bar("answer", f"id/{shown.metric}"),
        *(_line("curves", f"shift/{name}/{shown.metric}{end}") for name in shown.shifts[:MAX_CURVES]),
        _bar("calibration", name_over_shifts("mean", shown.calibration)),
        _bar("calibration", f"calibration/{shown.calibration}"),
        _bar("cost", "cost/duration_seconds"),
        _bar("cost", "system/peak_rss_mib"),
        _bar("cost", "system/cpu_utilization_percentage"),
    ]
    lines = "mean and 95 % interval" if shown.has_bands else "mean over replicates"
    return charts, {
        "answer": f"What holds up? {EVALUATED[shown.metric].title}",
        "curves": f"Severity curves, worst shift first (0: unshifted; {lines})",
        "calibration": "Calibration (lower is better)",
        "cost": "Cost",
    }


def _trial_charts(shown: Shown) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the charts of *trials*, and section → its heading."""
    charts = [
        _parallel(shown),
        _bar("answer", shown.mean),
        _bar("answer", shown.worst),
        _line("training", f"validation/{shown.metric}"),
        _line("training", "train/loss"),
    ]
    return charts, {"answer": f"Which choices hold up? {EVALUATED[shown.metric].title}", "training": "Training"}


def _chart(section: str, kind: str, name: str, about: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "uuid": f"robustsweep-{section}-{name}",
        "type": kind,
        "runsCountToCompare": MAX_LINES,
        "metricSectionId": f"robustsweep-{section}",
        "deleted": False,
        "isGenerated": False,
        **about,
    }


def _parallel(shown: Shown) -> dict[str, Any]:
    about = {"selectedParams": list(shown.factors), "selectedMetrics": [shown.mean, shown.worst], "showAllRuns": True}
    return _chart("answer", "PARALLEL", "parallel", about)


def _bar(section: str, key: str) -> dict[str, Any]:
    return _chart(section, "BAR", key, {"metricKey": key, "selectedMetricKeys": [key]})


def _line(section: str, key: str) -> dict[str, Any]:
    about = {
        "metricKey": key,
        "selectedMetricKeys": [key],
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
        "displayPoints": True,
    }
    return _chart(section, "LINE", key, about)


def _sections(names: Mapping[str, str], keys: Sequence[str] | frozenset[str]) -> list[dict[str, Any]]:
    """Return our sections, open, then those that MLflow fills with charts of all other metrics, closed."""
    ours = [(f"robustsweep-{section}", heading, True) for section, heading in names.items()]
    theirs = {key.rpartition("/")[0] for key in keys} - {"", "system"}
    generated = [(f"mlflow-{name}", name, False) for name in [*sorted(theirs), "Model metrics", "System metrics"]]
    about = {"isReordered": True, "deleted": False, "isGenerated": False, "columns": 3, "cardHeight": 300}
    return [about | {"uuid": uuid, "name": name, "display": display} for uuid, name, display in [*ours, *generated]]


def _encode(key: str, state: Mapping[str, Any], created_ms: int) -> str:
    packed = base64.b64encode(zlib.compress(json.dumps(state, ensure_ascii=False).encode(), 9)).decode()
    about = {"name": f"RobustSweep: {TITLES[key]}", "createdAt": created_ms, "updatedAt": created_ms}
    return json.dumps(about | {"state": f"deflate;{packed}"})
