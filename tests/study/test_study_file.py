from __future__ import annotations

import pwd
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.study.execution_config import ExecutionConfig
from orchestrator.study.fields import FIELDS
from orchestrator.study.study_file import Study, load_study, parse_study
from tests.support.paths import ROOT
from tests.support.study_texts import HEAD
from trainables.errors import InfrastructureError, StudyError

CONFIGS = ROOT / "configs"


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None], ids=["not UTF-8", "missing"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "s.yaml"
    if content:
        path.write_bytes(content)
    with pytest.raises(StudyError, match=r"could not read the study .*s\.yaml"):
        load_study(path)


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("\ufeff" + HEAD, encoding="utf-8")
    assert load_study(tmp_path / "s.yaml").study == "s"


def test_relative_paths_start_at_the_file_and_in_overrides_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = tmp_path / "studies" / "s.yaml"
    path.write_text(
        "study: s\ndata: {kind: csv, path: ../a.csv, root: ~/images}\n"
        "pretraining: {kind: contrastive, init: {kind: imagenet, file: w.pth}}\n"
        "factors:\n  data:\n    here: {}\n    other: {path: b.csv}\n    cifar: {kind: torchvision, name: CIFAR10}\n"
        "    absolute: {kind: image_folder, path: /images}\n"
        "conditions: [{when: {data: cifar}, set: {pretraining.init.file: v.pth}}]\n"
    )
    here, other, cifar, absolute = (arm.config for arm in load_study(path).arms())
    assert (here.data.path, here.data.root) == (tmp_path / "a.csv", tmp_path / "home" / "images")
    assert other.data.path == tmp_path / "studies" / "b.csv"
    assert cifar.data.path == tmp_path / "studies" / "data"
    assert absolute.data.path == Path("/images")
    assert here.pretraining.init.file == tmp_path / "studies" / "w.pth"
    assert cifar.pretraining.init.file == tmp_path / "studies" / "v.pth"
    overridden = load_study(path, ["data.path=c.csv", "factors.data.other.path=d.csv"]).arms()
    assert [arm.config.data.path for arm in overridden[:2]] == [
        tmp_path / "elsewhere" / "c.csv",
        tmp_path / "elsewhere" / "d.csv",
    ]


def test_execution_defaults() -> None:
    execution = parse_study(HEAD, source="s").execution
    assert execution == ExecutionConfig()
    assert (execution.gpus_per_trial, execution.max_retries, execution.storage) == ("auto", 2, "results")


def test_a_user_without_a_home_folder_names_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def getpwuid(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    with pytest.raises(InfrastructureError, match=r"looked for ~/.cache/robustsweep and found no home .* set HOME"):
        parse_study(HEAD, source="s")
    assert parse_study(f"{HEAD}\nexecution: {{cache_dir: {tmp_path}}}", source="s").execution.cache_dir == tmp_path


@pytest.mark.parametrize(("name", "num_arms"), [("quickstart", 12), ("pneumonia", 12), ("spleen-volumes", 3)])
def test_the_example_studies_are_sound(name: str, num_arms: int) -> None:
    study = load_study(CONFIGS / f"{name.replace('-', '_')}.yaml")
    assert study.study == name
    assert len(study.arms()) == num_arms
    assert study.replicates >= 2


def test_reading_a_study_needs_neither_torch_nor_ray_nor_mlflow() -> None:
    code = (
        "import sys, orchestrator.study.schema as e, orchestrator.study.study_file as s; e.study_schema(); "
        f"s.load_study({str(CONFIGS / 'quickstart.yaml')!r}).arms(); "
        "print(sorted({'torch', 'numpy', 'ray', 'mlflow', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --------------------------------------------------------------------------- fuzzing

WORDS = st.sampled_from([*FIELDS, *Study.model_fields, "kind", "when", "set", "a", "0", "imagenet", "strong", "digits"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WORDS
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
STUDIES = st.fixed_dictionaries(
    {"study": st.just("s"), "data": st.just("digits")},
    optional={
        "factors": st.dictionaries(WORDS, TREES, max_size=3) | TREES,
        "conditions": st.lists(
            st.fixed_dictionaries({"when": TREES, "set": st.dictionaries(WORDS, TREES)}), max_size=2
        ),
        "exclude": st.lists(st.dictionaries(WORDS, TREES, max_size=2), max_size=2),
        "pretraining": TREES,
        "training": TREES,
        "regulariser": TREES,
        "execution": TREES,
        "seed": SCALARS,
    },
)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)


def read(text: str, *overrides: str) -> None:
    """A text is a study, all of whose arms exist, or raises StudyError: nothing else."""
    try:
        study = parse_study(text, source="s.yaml", overrides=overrides)
    except StudyError as error:
        message = str(error)
    else:
        assert study.arms()
        return
    assert re.search(r"found \d+ problem", message)
    assert message.encode()  # can be printed


@FUZZ
@given(st.text(max_size=60) | st.text(alphabet="abc:-[]{}&*!|>%@\"'\\ \n\t#,?~<", max_size=40))
def test_any_text_is_a_study_or_a_study_error(text: str) -> None:
    read(text)
    read(HEAD + text)


@FUZZ
@given(TREES | STUDIES)
def test_any_tree_is_a_study_or_a_study_error(tree: object) -> None:
    read(yaml.safe_dump(tree))


@FUZZ
@given(st.text(max_size=12) | st.builds("{}={}".format, WORDS | st.text(max_size=8), TREES.map(str)))
def test_any_override_gives_a_study_or_a_study_error(override: str) -> None:
    read(HEAD + "factors: {augmentation: [none, strong]}", override)


def test_other_sources_reach_every_arm_with_paths_from_the_file(tmp_path: Path) -> None:
    text = (
        f"{HEAD}\nfactors: {{augmentation: [none, strong]}}\nevaluation:\n  roles: {{held_out: far}}\n  foreign:\n"
        "    digits: {data: {kind: digits, image_size: 16}, role: near}\n"
        "    chest: {data: {kind: medmnist, path: images/p.npz}}\n"
    )
    arms = parse_study(text, source="s", folder=tmp_path).arms()
    assert len(arms) == 2
    for arm in arms:
        foreign = arm.config.evaluation.foreign
        assert {name: source.role for name, source in foreign.items()} == {"digits": "near", "chest": "far"}
        assert foreign["digits"].data.image_size == 16
        assert foreign["chest"].data.path == tmp_path / "images/p.npz"
        assert arm.config.evaluation.find_role("held_out") == "far"
    with pytest.raises(StudyError, match=r"evaluation.foreign.digits.data"):
        parse_study(text.replace("kind: digits", "kind: digit"), source="s", folder=tmp_path)
