"""Checks that the metrics of hypotheses and of a search are defined on the data, without importing torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from orchestrator.planning.settings_checks import find_absent_classes
from orchestrator.study.contrasts import ContrastError, list_compared
from orchestrator.study.fields import suggest
from orchestrator.study.grid import Arm
from orchestrator.study.hypotheses import Hypothesis, list_measured
from orchestrator.study.search.config import SEEN_OVER_SHIFTS
from trainables.errors import StudyError
from trainables.evaluation.attribution.components import find_components
from trainables.evaluation.attribution.table import CENTRE_PRIOR, split_attribution
from trainables.evaluation.metric_tables.segmentation import OF_IMAGES_ALONE
from trainables.evaluation.metric_tables.views import is_of_class
from trainables.evaluation.metrics import (
    HEADLINE_FAILURE,
    HEADLINE_OOD,
    NUM_PARAMETERS,
    RELATIVE,
    SEGMENTATION_METRICS,
    THRESHOLDED,
    find_detection,
    find_metric,
    find_representation,
    find_site_aggregate,
    name_over_sites,
    split_view,
)
from trainables.training.selection import reads_shifted_validation

if TYPE_CHECKING:
    from orchestrator.study.search.config import SearchConfig
    from orchestrator.study.search.tuning import TuningConfig
    from trainables.config import TrialConfig
    from trainables.data.dataset import Dataset
    from trainables.data_config import DataConfig


def check_hypotheses_defined(
    hypotheses: Sequence[Hypothesis], arms: Sequence[Arm], load: Callable[[DataConfig], Dataset]
) -> None:
    """Check that every compared arm has the metric of each hypothesis, so that no verdict is open from the start.

    Args:
        hypotheses: hypotheses of a study file without other problems; their external sets exist.
        arms: arms of the study.
        load: loader of a config's data.

    Raises:
        StudyError: if an arm cannot have such a metric.
    """
    sites = [frozenset(load(arm.config.data).external) for arm in arms]
    for number, hypothesis in enumerate(hypotheses):
        for each in list_measured(hypothesis):
            try:
                compared = list_compared(each, [arm.levels for arm in arms], sites)
            except ContrastError as error:
                raise StudyError(
                    f"hypotheses[{number}].metric: found {each.metric!r}, and {error}; compare arms that are tested "
                    "on the same external sets"
                ) from error
            for index in compared:
                config = arms[index].config
                reason = find_undefined(each.metric, config, load(config.data))
                if reason is not None:
                    raise StudyError(
                        f"hypotheses[{number}].metric: found {each.metric!r}, and the arm {arms[index].name!r} has "
                        f"none: {reason}"
                    )


def check_search_defined(search: SearchConfig, config: TrialConfig, data: Dataset) -> None:
    """Check that trials have the metrics of a search, whose trials share data and evaluation.

    Raises:
        StudyError: if no trial can have one of them.
    """
    stopping = [] if search.early_stopping is None else [search.stopping_metric]
    for metric in dict.fromkeys([*search.metrics, *stopping]):
        reason = find_undefined(metric, config, data)
        if reason is None and metric in stopping and metric in SEEN_OVER_SHIFTS:
            measured = reads_shifted_validation(config.training)
            reason = None if measured else "early stopping by it needs training.select_by: robustness/…"
        if reason is not None:
            raise StudyError(f"search: found the metric {metric!r}, and no trial has it: {reason}")


def check_tuning_defined(tuning: TuningConfig, arms: Sequence[Arm], load: Callable[[DataConfig], Dataset]) -> None:
    """Check that the trials of every arm have the metric that chooses among the candidates.

    Args:
        tuning: section of a study file without other problems.
        arms: arms of the study.
        load: loader of a config's data.

    Raises:
        StudyError: if those of an arm cannot have it.
    """
    for arm in arms:
        reason = find_undefined(tuning.metric, arm.config, load(arm.config.data))
        if reason is not None:
            raise StudyError(f"tuning.metric: found {tuning.metric!r}, and the arm {arm.name!r} has none: {reason}")


def find_undefined(metric: str, config: TrialConfig, data: Dataset) -> str | None:
    """Return why a trial has no such headline number, None if it has one.

    Args:
        metric: a headline number of a trial or a column of trials.csv.
        config: config of the trial.
        data: data of the trial.
    """
    attribution = split_attribution(metric)
    if attribution is not None:
        return _find_undefined_attribution(attribution[0], attribution[2], config, data)
    if find_detection(metric) is not None:
        return _find_undefined_detection(metric, config, data)
    if find_representation(metric) is not None:
        if data.components:
            return "it is a statistic of the features of classifications, and task is segmentation"
        return _find_undefined_representation(metric.partition("/")[2], config)
    view, within = split_view(metric)
    if view:
        return _find_undefined_in_view(view, within, config, data)
    kind, _, rest = metric.partition("/")
    of_task = _find_undefined_of_task(find_metric(metric).name, kind, rest.rpartition("/")[0], data)
    return of_task if of_task is not None or kind == "dataset" else _find_undefined_score(metric, config, data)


def _find_undefined_in_view(view: str, within: str, config: TrialConfig, data: Dataset) -> str | None:
    """Return why a trial has no such number of a label map or class, None if it has one."""
    from trainables.evaluation.labels.maps import merge_labels, resolve_label_map

    ordinal, (name, _, last) = config.data.ordinal, view.partition("/")
    of_class = view if is_of_class(name) else last
    if not is_of_class(name):
        maps = config.evaluation.label_maps
        if name not in maps:
            known = ", ".join(maps) or "none"
            return f"evaluation.label_maps has no {name!r}{suggest(name, list(maps))}; there are {known}"
        label_map = resolve_label_map(name, maps[name], data.classes)
        data, ordinal = merge_labels(data, label_map), ordinal and label_map.is_ordered
    config = config.model_copy(update={"data": config.data.model_copy(update={"ordinal": ordinal})})
    if not of_class:
        return _find_undefined_score(within, config, data)
    if not config.evaluation.per_class:
        return "evaluation.per_class is false; set it to true for sensitivity and AUROC of each class"
    index = int(of_class.removeprefix("class_"))
    if index >= data.num_classes:
        return f"there is no class {index}: the classes are {', '.join(data.classes)}, counted from 0"
    return _find_undefined_score(within.replace("sensitivity", "balanced_accuracy"), config, data)


def _find_undefined_attribution(method: str, name: str, config: TrialConfig, data: Dataset) -> str | None:
    """Return why no trial can have a metric of relevance on lesions, None if it can."""
    asked = config.evaluation.attribution
    if asked is None:
        return f"evaluation.attribution is not set; set it to {{methods: [{method}, …]}}"
    if method not in (*asked.methods, CENTRE_PRIOR):
        return f"evaluation.attribution.methods has {', '.join(asked.methods)}, and not {method}"
    masks = data.splits["test"].masks
    if masks is not None and name.startswith("concentration_"):  # of files it is seen in the trials
        present = {
            f"concentration_{each}" for each, chosen in find_components(masks > 0).by_area().items() if chosen.any()
        }
        return None if name in present else "no test image has lesions of that area"
    return None


def _find_undefined_score(metric: str, config: TrialConfig, data: Dataset) -> str | None:
    """Return why a trial has no such number that is no one of failure detection, None if it has one."""
    name, (kind, _, rest) = find_metric(metric).name, metric.partition("/")
    if name == NUM_PARAMETERS.name:
        return None
    aggregate = find_site_aggregate(metric)
    if aggregate is not None:
        return _find_undefined_over_sites(aggregate, name, config, data)
    external = rest.rpartition("/")[0] if kind == "external" else None
    if external is not None and external not in data.external:
        known = f"the data have {', '.join(data.external)}" if data.external else "the data have no external set"
        return f"{known}{suggest(external, list(data.external))}"
    evaluation = config.evaluation
    is_over_shifts = kind in ("robustness", *RELATIVE) or "/" in rest or rest.startswith(("mean_shifted_", "worst_"))
    if is_over_shifts and external is None:
        key, shifts = "shifts", evaluation.shifts
        if kind == "validation":
            key, shifts = "validation_shifts", evaluation.validation_shifts
        if not shifts:
            return f"evaluation.{key} is empty"
    if name == "quadratic_kappa" and not config.data.ordinal:
        return "it needs ordered classes; set data.ordinal: true if they are"
    return _find_absent(name, external or ("val" if kind in ("val", "validation") else "test"), data)


def _find_undefined_of_task(name: str, kind: str, component: str, data: Dataset) -> str | None:
    """Return why these data admit no such metric, or no number ``dataset/<component>/…``, None if they do."""
    if name != NUM_PARAMETERS.name and (name in SEGMENTATION_METRICS) != bool(data.components):
        if data.components:
            return f"{name} is a metric of one class per image, and task is segmentation; expected one such as dice"
        return f"{name} is a metric of segmentations, and task is classification; expected one such as accuracy"
    if name in OF_IMAGES_ALONE and data.splits["train"].holds_volumes:
        return f"{name} is a metric of images, and the data are volumes"
    if kind != "dataset" or (component in data.components and data.components[1:]):
        return None
    return f"there are {', '.join(data.components)}" if data.components[1:] else "data.kind is not datasets"


def _find_undefined_detection(metric: str, config: TrialConfig, data: Dataset) -> str | None:
    """Return why no trial can have a number of failure or out-of-distribution detection, None if it can.

    A score that trials do not compute can be added to them later (``robustsweep evaluate``).
    """
    from trainables.evaluation.confidence import CONFIDENCE_SCORES

    kind, score, *rest = metric.removeprefix("validation/").split("/")
    expected = {"failure": HEADLINE_FAILURE, "ood": HEADLINE_OOD}[kind]
    if data.components:
        reason = _find_undefined_of_cases(score, rest[0], config)
        if reason is not None:
            return reason
    elif score not in CONFIDENCE_SCORES and not score.startswith("pytorch_ood."):
        return f"there is no confidence score {score!r}{suggest(score, list(CONFIDENCE_SCORES))}"
    if score in CONFIDENCE_SCORES and CONFIDENCE_SCORES[score].needs == "members":
        return f"{score} is computed from several models, in the report"
    if not rest[-1].endswith(expected) or (metric.startswith("validation/") and rest != [expected]):
        return f"of {kind}/{score}/… only {expected} is a headline number; detection.json of a trial has the others"
    if kind == "failure":
        return _find_unmeasured(rest[0], config, data)
    return _find_no_set("/".join(rest[:-1]), config, data)


def _find_undefined_of_cases(score: str, number: str, config: TrialConfig) -> str | None:
    """Return why no trial on segmentations has such a score, or not under shifts, None if it has."""
    from trainables.evaluation.confidence import OF_LAYERS, list_segmentation_scores, split_score

    known = list_segmentation_scores(config.evaluation.store_layers)
    if score not in known:
        return f"segmentations have no score {score!r}{suggest(score, known)}; expected one of {', '.join(known)}"
    if split_score(score)[0] in OF_LAYERS and number.startswith("mean_shifted_"):
        return f"{score} is computed of unshifted images alone"
    return None


def _find_undefined_representation(name: str, config: TrialConfig) -> str | None:
    """Return why no trial can have such a statistic of its layers or features, None if it can."""
    if name in ("first_kurtosis", "cka_initial", "procrustes_initial"):
        return None if config.evaluation.representation.layers else "evaluation.representation.layers is empty"
    return None if "test" in config.evaluation.store_features else "evaluation.store_features lacks test"


def _find_unmeasured(name: str, config: TrialConfig, data: Dataset) -> str | None:
    """Return why the mean that a number of failure detection is has nothing to average, None if it has."""
    if name.startswith("mean_shifted_") and not config.evaluation.shifts:
        return "evaluation.shifts is empty"
    return "the data have no external set" if name.startswith("mean_external_") and not data.external else None


def _find_no_set(name: str, config: TrialConfig, data: Dataset) -> str | None:
    """Return why there is no such set of images to tell from the test images, None if there is one."""
    sets = [*data.external, *data.ood, *config.evaluation.foreign]
    roles = {config.evaluation.find_role(each) for each in sets}
    known = [*sets, *(f"{role}{end}" for role in ("near", "far") if role in roles for end in ("", "_full_spectrum"))]
    if name in known:
        return None
    return f"there is no set {name!r} to tell from the test images; there are {', '.join(known) or 'none'}"


def _find_absent(name: str, split: str, data: Dataset) -> str | None:
    """Return why the classes of a split do not admit a metric, None if they do."""
    if name in THRESHOLDED and data.num_classes != 2:
        return f"it needs two classes, and the data have {data.num_classes}"
    needed = {"auroc": [split]} | {each: [split, "val"] for each in THRESHOLDED}
    for each in needed.get(name, ()):
        if lacking := find_absent_classes(data, each):
            return f"it needs an image of every class, and {each} has none of {', '.join(lacking[:6])}"
    return None


def _find_undefined_over_sites(aggregate: str, name: str, config: TrialConfig, data: Dataset) -> str | None:
    """Return why a metric has no such summary over the external sets, None if it has one."""
    needed = 1 if aggregate == "mean" else 2
    if len(data.external) < needed:
        found = f"the data have {', '.join(data.external)}" if data.external else "the data have no external set"
        return f"{name_over_sites(aggregate, name)} needs {needed}, and {found}"
    reasons = (find_undefined(f"external/{external}/{name}", config, data) for external in data.external)
    return next(filter(None, reasons), None)
