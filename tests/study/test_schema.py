from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from orchestrator.study.fields import FIELDS
from orchestrator.study.schema import study_schema
from orchestrator.study.yaml_source import read_yaml
from tests.support.paths import CONFIGS


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(json.dumps(study_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def is_valid(validator: jsonschema.Draft202012Validator, text: str) -> bool:
    return bool(validator.is_valid(read_yaml("study: s\ndata: digits\n" + text, "s").value))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_example_studies_fit(validator: jsonschema.Draft202012Validator, path: Path) -> None:
    validator.validate(read_yaml(path.read_text(), path.name).value)


def test_there_are_example_studies() -> None:
    assert {"quickstart", "pneumonia"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "data: {kind: csv, path: a.csv}",
        "pretraining: imagenet",
        "pretraining: {kind: contrastive, init: imagenet}",
        "pretraining: [imagenet, {kind: supervised, data: {kind: csv, path: a.csv}}, contrastive]",
        "pretraining: {kind: contrastive, data: [{kind: unlabelled_folder, path: a}, {kind: phantom}]}",
        "factors: {pretraining: {a: scratch, b: [{kind: weights, file: a.pth}, {kind: contrastive, epochs: 3}]}}",
        "training: {learning_rate: 1e-3, patience: null}",
        "factors: {augmentation.strength: [0, 0.5, 1]}",
        "factors: {pretraining: {a: scratch, b: {kind: contrastive, init.kind: imagenet}, c: {epochs: 3}}}",
        "factors: {training: {a: {epochs: 3}}, data.label_map: {a: {x: y}}}",
        "factors: {recipe: {a: {}, b: {training.epochs: 2, regulariser: dropout}}}",
        "factors: {regulariser.weight: [0.1, [0.1, 0.2]]}",
        "conditions: [{when: {a: [1, 2], b: x}, set: {training.epochs: 2}}]",
        "exclude: [{a: 1, b: [x, 0.5]}]",
        "execution: {gpus_per_trial: 0.5, mlflow: null}",
    ],
)
def test_what_the_file_may_say_fits(validator: jsonschema.Draft202012Validator, text: str) -> None:
    lines = "study: s\n" + ("" if text.startswith("data:") else "data: digits\n") + text
    validator.validate(read_yaml(lines, "s").value)


@pytest.mark.parametrize(
    "text",
    [
        "qestion: x",
        "replicates: 0",
        "pretraining: imagnet",
        "training: {epoch: 1}",
        "training: {epochs: 0}",
        "factors: {augmentation: [none, strog]}",
        "factors: {augmentation.strength: [2]}",
        "factors: {augmentation.strength: []}",
        "factors: {training.epochs: {a: x}}",
        "factors: {training.epoch: [1]}",
        "factors: {recipe: {a: {epochs: 1}}}",
        "factors: {pretraining: {a: {epoch: 1}}}",
        "conditions: [{when: {}, set: {training.epochs: 2}}]",
        "conditions: [{when: {a: 1}, set: {training.epoch: 2}}]",
        "exclude: [{}]",
        "execution: {cpu: 1}",
    ],
)
def test_what_the_file_may_not_say_does_not_fit(validator: jsonschema.Draft202012Validator, text: str) -> None:
    assert is_valid(validator, "")
    assert not is_valid(validator, text)


def test_editors_get_every_field_as_a_factor_and_a_description() -> None:
    schema = study_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(schema["properties"]["factors"]["properties"]) == set(FIELDS)
    assert schema["properties"]["replicates"]["description"]
    assert schema["title"] == "RobustSweep study"


def test_every_field_has_a_description() -> None:
    """Editors show it, and the site is made from it. ``kind`` is described by its model's docstring."""
    schema = study_schema()
    models = {"Study": schema} | {
        name: model for name, model in schema["$defs"].items() if "properties" in model and name != "Fields"
    }
    fields = {
        f"{name}.{field}": about
        for name, model in models.items()
        for field, about in model["properties"].items()
        if field != "kind"
    }
    assert len(fields) > 250
    assert [field for field, about in fields.items() if not about.get("description", "").strip()] == []
    assert [name for name, model in models.items() if not model.get("description", "").strip()] == []
