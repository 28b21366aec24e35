"""Study file → ``Study``, checked as a whole. All problems of the file are reported at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from orchestrator.study.data_sets import group_by_data_set
from orchestrator.study.execution_config import ExecutionConfig
from orchestrator.study.fields import FIELDS, SECTIONS, kind_of
from orchestrator.study.grid import MAX_RULES, Arm, Assignment, Grid, When, expand, find_label, read_grid, read_match
from orchestrator.study.hypotheses import MAX_HYPOTHESES, HypothesisConfig, expand_kinds
from orchestrator.study.hypothesis_checks import check_hypotheses
from orchestrator.study.problems import explain
from orchestrator.study.report_config import ReportConfig, check_matching, check_report, make_table_absolute
from orchestrator.study.search.config import SearchConfig, expand_sampler
from orchestrator.study.search.space import find_problems
from orchestrator.study.search.tuning import TuningConfig, draw_candidates, find_tuning_problems
from orchestrator.study.steps import CHAIN, check_encoders, find_files, nest_chains
from orchestrator.study.yaml_source import MAX_BYTES, Key, Source, apply_override, format_key, read_yaml
from trainables.augmentation_config import AugmentationConfig, NoAugmentation
from trainables.config import TrainingConfig
from trainables.data_config import DataConfig
from trainables.errors import StudyError
from trainables.evaluation_config import EvaluationConfig
from trainables.frozen import Frozen, PositiveInt, Seed, canonical_json
from trainables.model_config import ModelConfig
from trainables.pretraining_config import PretrainingConfig, ScratchPretraining
from trainables.regularisers import NoRegulariser, RegulariserConfig
from trainables.task_config import ClassificationTask, TaskConfig


def compute_study_sha256(study: Study) -> str:
    """Return the digest of a study file's content, without the section ``execution``."""
    return hashlib.sha256(canonical_json(study.describe()).encode()).hexdigest()


#: Assumption: ten times the largest study measured; a larger plan takes minutes and gigabytes.
MAX_TRIALS = 100_000

SET_DESCRIPTION = "Dotted field of the trial: value."


class Condition(Frozen):
    """Fields that are set in the arms that match ``when``."""

    when: When = Field(description="Factor: level, or list of levels. All factors named have to match.")
    set: Annotated[dict[str, Any], Field(min_length=1)] = Field(description=SET_DESCRIPTION)


class ReplicatesWhere(Frozen):
    """Number of replicates of the arms that match ``when``."""

    when: When = Field(description="Factor: level, or list of levels. All factors named have to match.")
    replicates: PositiveInt = Field(description="Trials per such arm: the first ones of all arms.")


class Study(Frozen):
    """One study file.

    The sections from ``data`` to ``seed`` are the base values of every trial; fields left out have their defaults.
    ``factors`` vary them, in full combination:

    - A factor named after a field (``augmentation.strength: [0, 0.5, 1]``) has values of that field as levels, in a
      list (labelled 0, 0.5, 1) or named (``learning_rate`` ``{low: 1e-4, high: 1e-3}``).
    - A factor named after a section (``pretraining``) has as levels bare strings, short for ``{kind: string}``, or
      named mappings. A mapping that names a ``kind`` replaces the section; one that does not is merged into the base
      section. Keys inside may be dotted (``init.kind``).
    - A factor of any other name (``recipe``) has named levels of ``{dotted.field: value}`` with whole paths.

    Shallow fields are set before deeper ones, so the order of factors does not matter; then come ``conditions``, in
    order. A field that does not apply to an arm is an error, and so are two arms with the same configuration:
    ``exclude`` one of them.

    With ``search`` only the combinations that the search proposes are run, together with values from its own ranges.
    With ``tuning`` every arm and replicate is trained with the same candidates of some settings, and consists of the
    one that is best on validation.

    Relative paths to data, weights and tables start at the study file's folder, in an override at the working
    directory.
    """

    study: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="Name: MLflow experiment and ledger folder."
    )
    question: str = Field("", description="What we want to know, for the head of the report.")
    data: DataConfig = Field(
        description="the images: kind is digits, coloured_digits, medmnist, image_folder, csv, torchvision, phantom"
    )
    task: TaskConfig = Field(
        ClassificationTask(), description="What the network predicts: a class per image, or pixel."
    )
    model: ModelConfig = Field(ModelConfig(), description="The network.")
    pretraining: PretrainingConfig = Field(ScratchPretraining(), description="Initial weights.")
    augmentation: AugmentationConfig = Field(NoAugmentation(), description="Random changes of training images.")
    regulariser: RegulariserConfig = Field(NoRegulariser(), description="What is added to the training, or changed.")
    training: TrainingConfig = Field(TrainingConfig(), description="Optimisation, and which epoch is evaluated.")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="Shifts and severities tested.")
    seed: Seed = Field(0, description="Everything random follows from it, the replicate and the role.")
    factors: dict[str, list[Any] | dict[str, Any]] = Field({}, description="Field or name: its levels.")
    conditions: list[Condition] = Field([], max_length=MAX_RULES, description="Fields set in matching arms, in order.")
    exclude: list[When] = Field([], max_length=MAX_RULES, description="Combinations that are left out.")
    replicates: PositiveInt = Field(1, description="Trials per arm; each has its own seed, shared across arms.")
    replicates_where: list[ReplicatesWhere] = Field(
        [], max_length=MAX_RULES, description="Other numbers of replicates in matching arms; the last that matches."
    )
    search: SearchConfig | None = Field(None, description="Adaptive search instead of the full grid; null: the grid.")
    tuning: TuningConfig | None = Field(None, description="The same small search within every arm; null: no setting.")
    hypotheses: list[HypothesisConfig] = Field(
        [],
        max_length=MAX_HYPOTHESES,
        description="What is claimed before the study runs; the report says how it ended.",
    )
    ceteris_paribus: Literal["report", "strict"] = Field(
        "report",
        description="Fields that conditions make differ between the sides of a hypothesis: said, or refused (strict).",
    )
    report: ReportConfig = Field(ReportConfig(), description="Reference and families of shifts in the report.")
    execution: ExecutionConfig = Field(  # when a study is read: it asks for the home
        default_factory=ExecutionConfig, description="Where and how trials run; no result depends on it."
    )

    def describe(self) -> dict[str, Any]:
        """Return the content of the file as JSON values, without the section ``execution``."""
        unset = {name for name in ("search", "tuning", "hypotheses", "replicates_where") if not getattr(self, name)}
        said = self.model_dump(mode="json", exclude={"execution"} | unset)
        if self.search is not None and self.search.early_stopping is None:
            del said["search"]["early_stopping"]
        if self.ceteris_paribus == "report":
            del said["ceteris_paribus"]
        if isinstance(self.task, ClassificationTask):
            del said["task"]
        if not self.report.families:
            del said["report"]["families"]
        return said

    def count_replicates(self, levels: Mapping[str, str]) -> int:
        """Return the number of replicates of the arm with these levels."""
        numbers = [each.replicates for each in self.replicates_where if _has_levels(each.when, levels)]
        return numbers[-1] if numbers else self.replicates

    @property
    def stops_early(self) -> bool:
        """Whether the search stops trials early."""
        return self.search is not None and self.search.early_stopping is not None

    def arms(self) -> list[Arm]:
        """Return the arms: all combinations of levels in file order, without the excluded ones.

        Raises:
            StudyError: if the factors do not fit the trial; never for a study that was read from a file.
        """
        source = self._as_source()
        arms = expand(read_grid(source), source)
        if source.problems:
            raise StudyError(source.describe_problems())
        return arms

    def candidates(self, arms: Sequence[Arm]) -> list[Arm]:
        """Return what is trained in every replicate: the arms, with ``tuning`` each once per candidate."""
        return list(arms) if self.tuning is None else draw_candidates(self.tuning, arms, seed=self.seed)

    def grid(self) -> Grid:
        """Return what the arms are made from: base values, factors, conditions and exclusions."""
        return read_grid(self._as_source())

    def _as_source(self) -> Source:
        return Source(self.study, {name: _plain(getattr(self, name)) for name in self.model_fields_set})


def load_study(path: Path | str, overrides: Sequence[str] = ()) -> Study:
    """Return the study in a YAML file.

    Args:
        path: path of the study file.
        overrides: overrides of the form ``dotted.path=YAML value``, applied before all checks.

    Raises:
        StudyError: if the file cannot be read or has problems; the message lists all of them with line and key.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode("utf-8-sig")  # one byte too many is refused; the file may be endless
    except (OSError, ValueError) as error:
        raise StudyError(f"could not read the study {path}: {error}; expected a YAML file in UTF-8") from error
    return parse_study(text, source=str(path), overrides=overrides, folder=path.parent)


def parse_study(text: str, *, source: str, overrides: Sequence[str] = (), folder: Path | str = ".") -> Study:
    """Return the study that a YAML text describes.

    Args:
        text: content of a study file.
        source: name of the file in messages.
        overrides: overrides of the form ``dotted.path=YAML value``, applied before all checks.
        folder: folder at which relative paths in the file start.

    Raises:
        StudyError: if the text has problems; the message lists all of them with line and key.
    """
    tree = read_yaml(text, source)
    for override in overrides:
        apply_override(tree, override)
    if isinstance(tree.value, dict):
        study = _validate(tree, folder)
        if study is not None and not tree.problems:
            return study
    elif not tree.problems:
        tree.report((), "found no study, expected a mapping with the keys study, data and factors")
    raise StudyError(tree.describe_problems())


def _validate(tree: Source, folder: Path | str) -> Study | None:
    nest_chains(tree)
    for section in SECTIONS:
        if section in tree.value:
            tree.value[section] = _expand_kind(section, tree.value[section])
    expand_kinds(tree.value)
    expand_sampler(tree.value)
    grid = read_grid(tree)
    _make_paths_absolute(tree, grid, folder)
    make_table_absolute(tree, folder)
    study, known = None, {problem.key for problem in tree.problems}
    try:
        study = Study.model_validate(tree.value)
    except ValidationError as error:
        for key, _, text in explain(error, Study, tree.value):
            if format_key(key) not in known:  # a value that could not be read is reported once
                tree.report(key, text)
    arms = expand(read_grid(tree), tree)
    check_hypotheses(tree, grid, arms)
    check_report(tree, grid, arms)
    if study is not None:
        _check_trials(tree, study, grid, arms)
    return study


def _check_trials(tree: Source, study: Study, grid: Grid, arms: list[Arm]) -> None:
    """Report what is wrong with the trials of a study as a whole: their number, encoders, search and tuning."""
    _check_replicates(tree, grid, study, arms)
    check_encoders(tree, grid, arms, [study.count_replicates(arm.levels) for arm in arms] or [study.replicates])
    check_matching(tree, study.report, arms, has_search=study.search is not None)
    if study.search and not tree.problems:
        _check_search(tree, study, study.search, arms)
    elif study.tuning and not tree.problems:
        for key, text in find_tuning_problems(study.tuning, arms, grid, seed=study.seed):
            tree.report(("tuning", *key), text)


def _check_replicates(tree: Source, grid: Grid, study: Study, arms: Sequence[Arm]) -> None:
    """Report too many trials, and numbers of replicates for arms that do not exist."""
    num_trials = sum(study.count_replicates(arm.levels) for arm in arms)
    num_trials *= study.tuning.candidates if study.tuning else 1
    if study.search is not None:
        num_trials = study.search.num_trials * study.replicates
        if study.replicates_where:
            tree.report(("replicates_where",), "does not go with search, whose configurations have equally many")
    if num_trials > MAX_TRIALS:
        found = f"found {num_trials:,} trials of {len(arms):,} arms"
        found += f" with {study.tuning.candidates} candidates each" if study.tuning else ""
        tree.report(("replicates",), f"{found}, expected at most {MAX_TRIALS:,} trials in all")
    raw = tree.value.get("factors")
    for index, each in enumerate(study.replicates_where):
        key: Key = ("replicates_where", index, "when")
        match = read_match(each.when, key, raw if isinstance(raw, Mapping) else {}, grid.factors, tree.report)
        if match is not None and arms and not any(_has_levels(each.when, arm.levels) for arm in arms):
            tree.report(key, "no arm matches; correct it or leave it out")


def _has_levels(when: Mapping[str, Any], levels: Mapping[str, str]) -> bool:
    """Return whether an arm matches a condition without problems."""
    return all(
        factor in levels
        and any(
            find_label(item, [levels[factor]]) is not None
            for item in (wanted if isinstance(wanted, list | tuple) else [wanted])
        )
        for factor, wanted in when.items()
    )


def _check_search(tree: Source, study: Study, search: SearchConfig, arms: list[Arm]) -> None:
    if study.tuning:
        text = "does not go with search, which varies settings itself; keep one of them"
        tree.report(("tuning",), text)
    for key, text in find_problems(search, arms, replicates=study.replicates):
        tree.report(("search", *key), text)
    if arms and len(found := group_by_data_set(arms)) > 1:
        tree.report(
            ("search",),
            f"found arms on {len(found)} data sets ({', '.join(found)}): results on different images cannot choose "
            "between configurations; expected a search on each, in a study of its own",
        )
    if study.hypotheses:
        tree.report(
            ("hypotheses",),
            "does not go with search: what it trains is chosen by the results so far, so its trials make no pairs, "
            "and no test on them keeps its error rate; test the claim in a study of its own, with the configurations "
            "in question as factors and other replicates (another seed)",
        )


def _expand_kind(path: str, value: Any) -> Any:
    """Return a base section with short forms expanded: ``imagenet`` becomes ``{kind: imagenet}``."""
    field = FIELDS.get(path)
    if field and field.kinds and isinstance(value, str):
        return {"kind": value}
    if field and field.models and isinstance(value, dict):
        return {name: _expand_kind(f"{path}.{name}", inner) for name, inner in value.items()}
    return value


def _make_paths_absolute(tree: Source, grid: Grid, folder: Path | str) -> None:
    """Make relative paths absolute, in place, so that processes with other working directories find the files."""
    for key, path in list(_relative_paths(grid)):
        *parents, name = key
        node = tree.value
        for part in parents:
            node = node[part]
        start = "." if isinstance(tree.place(key), str) else folder
        try:
            node[name] = os.path.abspath(Path(start) / Path(path).expanduser())
        except RuntimeError as error:  # ~nobody/…
            tree.report(key, f"found {path!r}: {error}")


#: Names of the fields that are paths.
_FILES = frozenset(field.name for field in FIELDS.values() if field.is_file)


def _relative_paths(grid: Grid) -> Iterator[tuple[Key, str]]:
    """Yield key and value of every path to data or weights, including relative defaults."""
    named = {assignment.source for assignment in grid.assignments()}
    for assignment in grid.assignments():
        field = FIELDS.get(".".join(assignment.path))
        if field and field.is_file and isinstance(assignment.value, str):
            yield assignment.source, assignment.value
        if assignment.path == ("evaluation", "foreign") and isinstance(assignment.value, Mapping):
            yield from _paths_of_sources(assignment)
        if assignment.path[0] == CHAIN and isinstance(assignment.value, Mapping | list):
            yield from find_files(assignment.value, assignment.source, _FILES)
        if assignment.path[-1] == "kind" and assignment.source[-1:] == ("kind",) and field:
            owner = next((model for model in field.owners if kind_of(model) == assignment.value), None)
            for name, info in owner.model_fields.items() if owner else ():
                place = (*assignment.source[:-1], name)
                if isinstance(info.default, Path) and place not in named:
                    yield place, str(info.default)


def _paths_of_sources(assignment: Assignment) -> Iterator[tuple[Key, str]]:
    """Yield key and value of every path of the other data sources of an evaluation."""
    for name, source in assignment.value.items():
        data = source.get("data") if isinstance(source, Mapping) else None
        for field, value in data.items() if isinstance(data, Mapping) else ():
            known = FIELDS.get(f"data.{field}")
            if known is not None and known.is_file and isinstance(value, str):
                yield (*assignment.source, name, "data", field), value


def _plain(value: Any) -> Any:
    """Return the fields that were set in a model as plain values, always including ``kind``."""
    if isinstance(value, BaseModel):
        named = value.model_fields_set | ({"kind"} & set(type(value).model_fields))
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields if name in named}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
