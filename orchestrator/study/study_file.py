"""Study file → ``Study``, checked as a whole. All problems of the file are reported at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from orchestrator.study.execution_config import ExecutionConfig
from orchestrator.study.fields import FIELDS, SECTIONS, kind_of
from orchestrator.study.grid import MAX_RULES, Arm, Grid, When, expand, read_grid
from orchestrator.study.hypotheses import MAX_HYPOTHESES, HypothesisConfig, expand_kinds
from orchestrator.study.hypothesis_checks import check_hypotheses
from orchestrator.study.problems import explain
from orchestrator.study.report_config import ReportConfig, check_report, make_table_absolute
from orchestrator.study.search_config import SearchConfig, expand_sampler
from orchestrator.study.search_space import find_problems
from orchestrator.study.yaml_source import MAX_BYTES, Key, Source, apply_override, format_key, read_yaml
from trainables.augmentation_config import AugmentationConfig, NoAugmentation
from trainables.config import DataConfig, EvaluationConfig, ModelConfig, TrainingConfig
from trainables.errors import StudyError
from trainables.frozen import Frozen, PositiveInt, Seed, canonical_json
from trainables.pretraining_config import PretrainingConfig, ScratchPretraining
from trainables.regularisers import NoRegulariser, RegulariserConfig


def compute_study_sha256(study: Study) -> str:
    """Return the digest of a study file's content, without the section ``execution``."""
    return hashlib.sha256(canonical_json(study.describe()).encode()).hexdigest()


#: Assumption: ten times the largest study measured; a larger plan takes minutes and gigabytes.
MAX_TRIALS = 100_000

_SET = "Dotted field of the trial: value."


class Condition(Frozen):
    """Fields that are set in the arms that match ``when``."""

    when: When = Field(description="Factor: level, or list of levels. All factors named have to match.")
    set: Annotated[dict[str, Any], Field(min_length=1)] = Field(description=_SET)


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
    search: SearchConfig | None = Field(None, description="Adaptive search instead of the full grid; null: the grid.")
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
        unset = {name for name in ("search", "hypotheses") if not getattr(self, name)}
        said = self.model_dump(mode="json", exclude={"execution"} | unset)
        if self.search is not None and self.search.early_stopping is None:
            del said["search"]["early_stopping"]
        if self.ceteris_paribus == "report":
            del said["ceteris_paribus"]
        if not self.report.families:
            del said["report"]["families"]
        return said

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
    num_arms = study.search.num_trials if study is not None and study.search else len(arms)
    if study is not None and num_arms * study.replicates > MAX_TRIALS:
        found = f"found {study.replicates:,} of {num_arms:,} arms"
        tree.report(("replicates",), f"{found}, expected at most {MAX_TRIALS:,} trials in all")
    if study is not None:
        _check_encoders(tree, grid, arms, study.replicates)
    if study is not None and study.search and not tree.problems:
        _check_search(tree, study, study.search, arms)
    return study


def _check_encoders(tree: Source, grid: Grid, arms: Sequence[Arm], replicates: int) -> None:
    """Report numbers of contrastive encoders that the replicates, or their splits, cannot use."""
    shared = []
    for arm in arms:
        encoders = getattr(arm.config.pretraining, "encoders", None)
        if arm.config.data.split == "per_replicate" and isinstance(encoders, int) and encoders < replicates:
            shared.append(arm.name)
    if shared:
        tree.report(
            ("pretraining", "encoders"),
            "expected per_replicate with data.split: per_replicate, because an encoder that replicates share has seen "
            f"test images of theirs (arm {shared[0]}{f' and {len(shared) - 1} more' if shared[1:] else ''})",
        )
    for assignment in grid.assignments():
        number = assignment.value
        if assignment.path == ("pretraining", "encoders") and isinstance(number, int) and number > replicates:
            tree.report(
                assignment.source,
                f"found {number} encoders for {replicates:,} replicate(s), expected at most as many: no trial "
                "would start from the others; raise replicates, or say per_replicate",
            )


def _check_search(tree: Source, study: Study, search: SearchConfig, arms: list[Arm]) -> None:
    for key, text in find_problems(search, arms, replicates=study.replicates):
        tree.report(("search", *key), text)
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


def _relative_paths(grid: Grid) -> Iterator[tuple[Key, str]]:
    """Yield key and value of every path to data or weights, including relative defaults."""
    named = {assignment.source for assignment in grid.assignments()}
    for assignment in grid.assignments():
        field = FIELDS.get(".".join(assignment.path))
        if field and field.is_file and isinstance(assignment.value, str):
            yield assignment.source, assignment.value
        if assignment.path[-1] == "kind" and assignment.source[-1:] == ("kind",) and field:
            owner = next((model for model in field.owners if kind_of(model) == assignment.value), None)
            for name, info in owner.model_fields.items() if owner else ():
                place = (*assignment.source[:-1], name)
                if isinstance(info.default, Path) and place not in named:
                    yield place, str(info.default)


def _plain(value: Any) -> Any:
    """Return the fields that were set in a model as plain values, always including ``kind``."""
    if isinstance(value, BaseModel):
        named = value.model_fields_set | ({"kind"} & set(type(value).model_fields))
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields if name in named}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def study_schema() -> dict[str, Any]:
    """Return the JSON schema of the study file (draft 2020-12), with which editors complete and check it."""
    schema = Study.model_json_schema()
    properties = schema["properties"]
    for section in SECTIONS:
        if FIELDS[section].kinds:
            properties[section] = _with_short_forms(FIELDS[section].kinds, properties[section])
    init = schema["$defs"]["ContrastivePretraining"]["properties"]
    init["init"] = _with_short_forms(FIELDS["pretraining.init"].kinds, init["init"])
    search = schema["$defs"]["SearchConfig"]["properties"]
    search["sampler"] = _with_short_forms(search["sampler"]["discriminator"]["mapping"], search["sampler"])
    kinds = search["early_stopping"]["anyOf"][0]["discriminator"]["mapping"]
    search["early_stopping"] = _with_short_forms(kinds, search["early_stopping"])
    values = {path: _value_schema(path) for path in FIELDS}
    named = {"type": "object", "minProperties": 1, "additionalProperties": {"$ref": "#/$defs/Fields"}}
    properties["factors"] |= {
        "properties": {path: _levels_schema(path) for path in FIELDS},
        "additionalProperties": named | {"description": "Named levels, each sets fields by their whole path."},
    }
    schema["$defs"]["Fields"] = {"type": "object", "properties": values, "additionalProperties": False}
    schema["$defs"]["Condition"]["properties"]["set"] = {
        "$ref": "#/$defs/Fields",
        "minProperties": 1,
        "description": _SET,
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"title": "RobustSweep study"}


def _with_short_forms(kinds: Iterable[str], schema: dict[str, Any]) -> dict[str, Any]:
    described = {key: schema.pop(key) for key in ("description", "default", "title") if key in schema}
    return described | {"anyOf": [{"enum": list(kinds)}, schema]}


def _value_schema(path: str) -> dict[str, Any]:
    """Return the schema of a field's value; that of a section accepts partial mappings and dotted keys."""
    field = FIELDS[path]
    if not field.models:
        refs = [{"$ref": f"#/$defs/{owner.__name__}/properties/{field.name}"} for owner in field.owners]
        return refs[0] if len(refs) == 1 else {"anyOf": refs}
    inner = {name.removeprefix(f"{path}.") for name in FIELDS if name.startswith(f"{path}.")}
    partial = {"type": "object", "propertyNames": {"enum": sorted(inner)}}
    partial["properties"] = {"kind": {"enum": list(field.kinds)}} if field.kinds else {}
    return {"anyOf": [{"enum": list(field.kinds)}, partial]} if field.kinds else partial


def _levels_schema(path: str) -> dict[str, Any]:
    value = _value_schema(path)
    listed = {"type": "array", "minItems": 1, "items": value}
    return {"anyOf": [listed, {"type": "object", "minProperties": 1, "additionalProperties": value}]}
