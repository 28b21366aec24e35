"""Content of the chosen model's card, from the study's tables; after Mitchell et al. 2019."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.analysis.results import Results
from orchestrator.analysis.wording import flatten, plural, sentence
from orchestrator.planning.states import STOPPED
from orchestrator.selection.card_format import Card, CardPart, Code, Facts, Grid, Items, Text
from orchestrator.selection.card_results import show_calibration, show_performance, show_robustness
from orchestrator.selection.part_scores import PartScores
from orchestrator.selection.ranking import RULES, Selection, describe_value
from orchestrator.statistics.intervals import MIN_REPLICATES
from trainables.config import TrainingConfig, TrialConfig

if TYPE_CHECKING:
    from trainables.exported.network import ExportedNetwork

#: Settings of the training that the card lists; the others are in config.json of the trial.
_SETTINGS = (
    "training.epochs", "training.batch_size", "training.optimiser", "training.learning_rate", "training.schedule",
    "training.label_fraction", "training.class_weights", "training.select", "training.select_by",
    "training.precision", "training.confidence.kind",
)  # fmt: skip


@dataclass(frozen=True)
class ExportFacts:
    """Facts about the exported files."""

    #: How networks of this task are used.
    model: type[ExportedNetwork]
    #: What a user has to know of this one (``ExportedNetwork.list_notes``).
    notes: Sequence[str]
    #: Numerical checks of the export, as sentences.
    checks: Sequence[str]
    #: Name of a file beside the card → its content, in words.
    files: Mapping[str, str]


def build_card(
    results: Results,
    selection: Selection,
    config: TrialConfig,
    *,
    parts: PartScores,
    exported: ExportFacts,
) -> Card:
    """Return the card of the selected model.

    Args:
        results: results of the study.
        selection: selection made from these results.
        config: configuration of the selected trial.
        parts: scores per site and class of the selected arm.
        exported: what is known of the exported files.
    """
    chosen = results.trials[results.trials["name"] == selection.arm.name]
    data = results.plan["data"]
    return Card(
        title=f"{results.plan['study']}: {selection.arm.name}" + " (oracle)" * selection.oracle,
        eyebrow="Model card" + " · chosen by an oracle" * selection.oracle,
        lede=f"{plural(len(data['classes']), 'class').replace('classs', 'classes')} of {data['name']} images, "
        f"replicate {selection.replicate} ({selection.arm.complete} are complete, from 0). Made to answer: "
        f"{results.plan['question'] or results.plan['study']}",
        warnings=_warnings(selection),
        parts=[
            _intended_use(results, config, exported),
            _data(results),
            _training(results, selection, config),
            show_performance(results, selection, chosen, parts),
            show_robustness(results, selection, chosen),
            show_calibration(results, selection, chosen),
            _selection(selection),
            _limits(results, selection, parts, training=config.training),
            _provenance(results, selection, exported),
        ],
        pipeline_tag=exported.model.pipeline_tag,
        tags=[
            exported.model.pipeline_tag,
            "robustness",
            results.plan["study"],
            *(["oracle"] if selection.oracle else []),
        ],
    )


def _warnings(selection: Selection) -> list[str]:
    counts, warnings = selection.counts, []
    if selection.oracle:
        warnings.append(
            f"Chosen by an oracle: {selection.column} is not in-distribution validation. The data that chose it are "
            "among those it is judged by here, so these numbers are a bound and not what to expect."
        )
    lacking = counts["planned"] - counts["complete"] - counts.get(STOPPED, 0)
    if lacking:
        said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        warnings.append(f"Chosen while {lacking} trials were not complete ({said}): another arm may be better.")
    better = "the numbers here may be better than on new images"
    return [*warnings, *(f"{sentence(remark)}; {better}." for remark in selection.remarks)]


def _intended_use(results: Results, config: TrialConfig, exported: ExportFacts) -> CardPart:
    data = results.plan["data"]
    images = config.data
    colour = "grey" if images.channels == 1 else "RGB"
    purpose = exported.model.purpose.format(colour=colour, size=images.image_size, resize=images.resize)
    return CardPart(
        "Intended use",
        [
            Text(
                f"To study which training choices hold up under distribution shift, on {data['name']} images "
                f"({data['modality']}). The network {purpose}: {_list(data['classes'])}."
            ),
            Text(
                "Not a medical device. Not for diagnosis, triage or any decision about a person. Not tested on images "
                "of other kinds, sites or populations than those listed here; before any use, test it on your own."
            ),
            *([Items(exported.notes)] if exported.notes else []),
            Code(exported.model.usage.format(channels=images.channels, size=images.image_size)),
        ],
    )


def _list(values: Sequence[str], most: int = 30) -> str:
    shown = ", ".join(map(str, values[:most]))
    return shown if len(values) <= most else f"{shown} … ({len(values)} in all)"


def _data(results: Results) -> CardPart:
    data = results.plan["data"]
    images = dict(data["num_images"])
    rows = {
        "source": f"{data['name']} (kind {data['kind']}, modality {data['modality']})",
        "fingerprint": data["fingerprint"],
        "images": ", ".join(f"{images.pop(name):,} {name}" for name in ("train", "val", "test")),
        "external sets": ", ".join(f"{count:,} {name}" for name, count in images.items()) or "none",
        "set aside as unusable": str(len(data["quarantined"])),
        "splits": f"no group (patient) is in two of them; {_describe_splits(results)}",
    }
    return CardPart("Data", [Facts(rows)])


def _describe_splits(results: Results) -> str:
    """Return what shares the splits, as far as the trials that have started say it."""
    fields = ("split_seed", "leave_out", "external_sites", "val_fraction", "test_fraction")
    configs = [record.config["config"]["data"] for record in results.records.values()]
    differing = [name for name in fields if any(each.get(name) != configs[0].get(name) for each in configs)]
    return f"{', '.join(differing)} not the same in all trials" if differing else "the same for all arms and replicates"


def _training(results: Results, selection: Selection, config: TrialConfig) -> CardPart:
    record = results.records[selection.signature]
    assert record.result is not None
    flat = flatten(config.model_dump(mode="json"))
    arm = record.config["arm"]
    rows = {f"{name} (varied)": str(arm[name]) for name in results.factors if name in arm}
    part = "" if config.model.stages is None else f" (first {config.model.stages} stages)"
    rows["network"] = f"{config.model.name}{part}, {record.result['num_parameters']:,} weights"
    rows |= {
        name: getattr(config, name).kind
        for name in ("pretraining", "augmentation", "regulariser")
        if name not in results.factors
    }
    rows |= {name.removeprefix("training."): str(flat[name]) for name in _SETTINGS}
    candidate = results.read_candidate(selection.signature)
    rows |= {f"{name.removeprefix('training.')} (tuned)": value for name, value in candidate.get("tuned", {}).items()}
    if candidate:
        tuning = results.plan["tuning"]
        rows["tuned"] = (
            f"candidate {candidate['candidate']} (from 0) of {tuning['candidates']}, the best of this replicate by "
            f"{tuning['metric']}"
        )
    rows["trained"] = f"{record.result['epochs']} epochs; the weights are those of epoch {record.result['best_epoch']}"
    if "confidence_epoch" in record.result:
        rows["trained"] += f", those of its confidence of epoch {record.result['confidence_epoch']}"
    return CardPart("Training", [Facts(rows)])


# ------------------------------------------------------------------------------------------------ selection, limits


def _selection(selection: Selection) -> CardPart:
    counts = ", ".join(f"{count} {state}" for state, count in selection.counts.items() if count)
    rows = [
        [arm.label, str(place), describe_value(arm), f"{arm.complete} / {arm.planned}"]
        for place, arm in enumerate(selection.ranking, start=1)
    ]
    return CardPart(
        "Selection",
        [
            Facts(
                {
                    "chosen by": f"{selection.column} ({selection.chooser})",
                    "rule": RULES[selection.rule],
                    "trials": counts,
                }
            ),
            Items(selection.reasons),
            Grid(["arm", "rank", selection.column, "complete"], rows[:20]),
            *([Text(f"{len(rows) - 20} further arms are in selection.json.")] if len(rows) > 20 else []),
        ],
    )


def _limits(results: Results, selection: Selection, parts: PartScores, *, training: TrainingConfig) -> CardPart:
    items = []
    if not results.external_sets:
        items.append("No external set: nothing is known about images from another site.")
    if not parts.sites:
        items.append("Sites inside the test set are unknown or one: per-site results cannot be given.")
    if selection.arm.complete < MIN_REPLICATES:
        items.append(
            f"{plural(selection.arm.complete, 'replicate')}: the spread over seeds is "
            f"{'unknown' if selection.arm.complete == 1 else 'hardly known'}; at least {MIN_REPLICATES} would do."
        )
    # Plans of older versions lack the key.
    has_own_splits = results.plan.get("base", {}).get("data", {}).get("split") == "per_replicate"
    splits = "each replicate has a split of its own" if has_own_splits else "all replicates share one split of the data"
    epoch = f"The epoch was picked by validation {training.select_by}."
    if training.select == "last":
        epoch = "The epoch was not picked: it is the last."
    items += [
        f"The spread is that of initial weights, order and augmentation; {splits}.",
        f"The arm was picked among {len(selection.ranking)} by {selection.column}, which flatters that column; so does "
        f"picking its best replicate. {epoch}",
        "The shifts are synthetic: they stand for what may happen to images, and real changes of scanner, staining or "
        "population differ. Robustness to others is unknown.",
        "Performance for subgroups of people (age, sex, skin tone, …) was not measured unless it is a site above.",
        "Confidences are as the training left them, not recalibrated (see Calibration).",
    ]
    return CardPart("Limits", [Items(items)])


def _provenance(results: Results, selection: Selection, exported: ExportFacts) -> CardPart:
    record, plan = results.records[selection.signature], results.plan
    assert record.result is not None
    environment = ", ".join(f"{name} {value}" for name, value in record.result["environment"].items())
    rows = {
        "study": f"{plan['study']}, sha256 {plan['study_sha256']}",
        "trial": f"signature {selection.signature}, replicate {selection.replicate}",
        "weights": f"sha256 {record.result['checkpoint_sha256']}",
        "data": f"fingerprint {record.config['data_fingerprint']}",
        "code": f"git commit {record.config['git_commit']}"
        if record.config["git_commit"]
        else "not in a git repository",
        "versions": ", ".join(f"{name} {version}" for name, version in plan["versions"].items()),
        "trained on": environment,
    }
    return CardPart(
        "Provenance",
        [
            Facts(rows),
            Text("Numerical checks of what lies in this folder:"),
            Items(exported.checks),
            Text("Files:"),
            Facts(exported.files),
        ],
    )
