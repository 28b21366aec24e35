"""Study files, manifests, weights and ledgers that somebody else made, carelessly or with intent.

Whatever they hold, the outcome is a study or a message for the user: no other exception, no hang, no code of theirs
run, and nothing read or written outside the folders they belong to.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestrator.analysis.results import load_results
from orchestrator.driver.prepare import prepare
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.write import write_report
from orchestrator.study.study_file import load_study
from tests.conftest import FinishedStudy
from tests.support.paths import CONFIGS
from tests.support.study_texts import HEAD
from tests.support.tiny_study import Place, copy_place
from trainables.data.load import load_dataset
from trainables.data_config import CsvData, ImageFolderData, MedmnistData
from trainables.errors import (
    CheckpointError,
    DataError,
    RobustSweepError,
    StorageError,
    StudyError,
    WeightsUnavailableError,
)
from trainables.evaluation.predictions import load_predictions
from trainables.pretraining.imagenet import load_imagenet
from trainables.pretraining_config import ImageNetPretraining
from trainables.storage.checkpoint import load_checkpoint, load_weights
from trainables.storage.completeness import describe_files
from trainables.storage.folder import Folder

FUZZ = settings(
    max_examples=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)

# --------------------------------------------------------------------------- the study file

#: What a careless or hostile hand writes where something else is expected.
VALUES: list[Any] = [
    None, True, 0, -1, 1, 2**31, 2**63, 10**40, 10**400, 0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"),
    "", " ", "none", "~", "~nobody-here/x", "a" * 5000, "9" * 5000, "1e999", "é\u202e\U0001f9ea", "../../x",
    "/etc/passwd", "a\tb", "a\nb", "\0", "\x1b[31m", "[red]", "2026-01-01", "12:30:45", "0x10", "<<", "=", "nosuch://x",
    "s3://x:y@z", [], [[]], {}, {"": ""}, {"kind": "none"}, {"kind": []}, {"kind": "phantom"},
    {"a.b": {"c.d": 1}}, ["a", 1, None],
]  # fmt: skip
BYTES = [
    b"\0", b"\xff\xfe", b"\t", b"&a [*a]", b"*a", b"!!python/object/apply:os.system ['true']", b"<<: {}", b"---\n",
    b"{", b"]", b": ", b"\n- ", b"!", b"%", b"\xef\xbb\xbf", b"? [1]\n", b"\xe2\x80\xa8",
]  # fmt: skip


def places(tree: Any, key: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the key of everything in a tree."""
    yield key
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, inner in entries:
        yield from places(inner, (*key, name))


def change(tree: dict[str, Any], key: tuple[Any, ...], how: str, value: Any) -> None:
    """Change what lies at ``key``, in place."""
    owner: Any = tree
    for part in key[:-1]:
        owner = owner[part]
    last = key[-1]
    if how == "replace":
        owner[last] = value
    elif how == "nest":
        owner[last] = {str(value)[:50]: owner[last]}
    elif how == "list":
        owner[last] = [owner[last], value]
    elif how == "delete":
        del owner[last]
    elif isinstance(owner, dict):  # rename
        owner[str(value)[:50]] = owner.pop(last)


@st.composite
def studies(draw: st.DrawFn) -> bytes:
    """A real study, damaged in its structure, in its bytes, or both."""
    text = draw(st.sampled_from([path.read_text() for path in CONFIGS] + [HEAD]))
    tree = yaml.safe_load(text)
    for _ in range(draw(st.integers(0, 3))):
        keys = list(places(tree))[1:]
        if keys:
            how = draw(st.sampled_from(["replace", "replace", "nest", "list", "delete", "rename"]))
            change(tree, draw(st.sampled_from(keys)), how, deepcopy(draw(st.sampled_from(VALUES))))
    data = yaml.safe_dump(tree, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 40)))
        middle = draw(st.sampled_from(BYTES) | st.just(data[start:end] * 2) | st.binary(max_size=4))
        data = data[:start] + middle + data[end:]
    return data


@contextmanager
def bounded_memory(gib: float) -> Iterator[None]:
    """Let this process have at most so much more address space than it has now."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + int(gib * 2**30), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def make_images(folder: Path) -> None:
    """Write a manifest of 12 tiny images of two classes."""
    lines = ["file_name,label"]
    for number in range(12):
        Image.new("L", (4, 4), 20 * number).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{'ab'[number % 2]}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")


def plan_like_a_user(path: Path, storage: Path) -> str:
    """Do what ``robustsweep plan`` does, without its pilot; return what the user is told when it is refused."""
    try:
        study = load_study(path, ["execution.cache_dir=" + str(storage.parent / "cache")])
        prepare(study, storage=str(storage))
    except RobustSweepError as error:
        return str(error)
    return "a study"


@FUZZ
@given(data=studies())
def test_any_study_file_is_a_study_or_a_message(data: bytes, tmp_path: Path) -> None:
    make_images(tmp_path)
    path = tmp_path / "s.yaml"
    path.write_bytes(data)
    with bounded_memory(4):
        said = plan_like_a_user(path, tmp_path / "results")
    assert said.strip()
    assert said.encode()  # can be printed
    assert "read the study" not in said or str(path) in said


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0", b"\xff\xfe\0s", b"\xef\xbb\xbf", "study: s".encode("utf-16"), b"[" * 100_000, b"- " * 50_000,
        b"a: " * 5000, b"{" * 50_000 + b"}" * 50_000, b"study: " + b"1" * 150_000, b"? " * 1000, b"- &a [*a]",
        b"a: &a [x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
        + b"".join(b"%c: &%c [%s]\n" % (n + 1, n + 1, b",".join([b"*%c" % n] * 9)) for n in range(98, 112)),
        b"!!python/object/apply:os.mkdir ['exploded']", b"study: !!python/name:os.system s", b"%YAML 9.9\n---\na: 1",
        b"study: s\n---\nstudy: t", b"\tstudy: s", b"study: s\ndata: digits\nseed: 0x" + b"f" * 9000,
        b"study: s\n" + b"".join(b"k%d: 1\n" % n for n in range(15_000)), b"#" * 10_000_000,
        b"study: s\ndata: digits\nreplicates: 1000000000", b"study: 'a\\\n  b'\ndata: digits",
        b"study: ..\ndata: digits",
    ],
    ids=lambda data: repr(data[:16]),
)  # fmt: skip
def test_bombs_are_refused_in_seconds_and_run_nothing(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_bytes(data)
    with bounded_memory(1), pytest.raises(StudyError, match=r"s\.yaml"):
        load_study(tmp_path / "s.yaml")
    assert os.listdir(tmp_path) == ["s.yaml"]


def test_a_study_file_without_an_end_is_refused() -> None:
    with bounded_memory(1), pytest.raises(StudyError, match="/dev/zero"):
        load_study("/dev/zero")


@pytest.mark.parametrize(
    "name", ["..", "../x", "/x", "a/b", "a\\b", ".hidden", "a\nb", "CON\0", "\u202ex", "", "a" * 101]
)
def test_a_study_lies_in_a_folder_of_its_local_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"study": name, "data": "digits"}))
    with pytest.raises(StudyError, match=r"s\.yaml:\d+: study"):
        load_study(tmp_path / "s.yaml")


@FUZZ
@given(
    name=st.text(max_size=20) | st.sampled_from(["../x", "a/../../x", "/x", "a/../x", "x\0", "a" * 300, "~/x", "..\\x"])
)
def test_nothing_is_written_outside_a_folder(name: str, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "inside")
    with suppress(StorageError):
        (folder / "trials").write(name, b"x")
        (folder / name).write("x", b"x")
    assert os.listdir(tmp_path) in (["inside"], [])


# --------------------------------------------------------------------------- manifests and folders of images

NAMES = ["file_name", "label", "id", "split", "group", "site", "age", "", "file_name ", "Label"]
CELLS = [
    *(f"{number}.png" for number in range(6)), "a", "b", "train", "test", "val", "external/x", "external/" + "x" * 300,
    "../out.png", "/etc/passwd", "..\\x", "C:\\x", "link.png", "pipe", "loop", "a" * 5000, "9" * 5000, "nan", "", " ",
    "\0", "a\0b", '"', '"a,b"', "é", "\u202e", "=1+1", "1e999", "-0", "٣", "none",
]  # fmt: skip


@st.composite
def manifests(draw: st.DrawFn) -> bytes:
    """Any table, or any bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    names = draw(st.permutations(NAMES[:6]).map(lambda names: names[: 2 + len(names) // 2]))
    names = [*names, *draw(st.lists(st.sampled_from(NAMES), max_size=2))]
    width = st.sampled_from([len(names)] * 8 + [1, len(names) + 1])
    rows = draw(
        st.lists(width.flatmap(lambda n: st.lists(st.sampled_from(CELLS), min_size=n, max_size=n)), max_size=12)
    )
    lines = [",".join(row) for row in [names, *rows]]
    good = [f"{number}.png,{'ab'[number % 2]}" + "," * (len(names) - 2) for number in range(12)]
    return "\n".join([*lines, *(good if draw(st.booleans()) else [])]).encode("utf-8")


@FUZZ
@given(data=manifests(), on_bad=st.sampled_from(["error", "quarantine"]))
def test_any_manifest_is_a_data_set_or_a_message(data: bytes, on_bad: Any, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir(exist_ok=True)
    make_images(root)
    if not (root / "pipe").exists():
        os.mkfifo(root / "pipe")  # reading it never ends
        (root / "loop").symlink_to("loop")
        (root / "link.png").symlink_to("/etc/passwd")
    (root / "manifest.csv").write_bytes(data)
    config = CsvData(path=root / "manifest.csv", image_size=4, on_bad=on_bad)
    said = ""
    try:
        load_dataset(config, cache_dir=tmp_path / "cache")
    except RobustSweepError as error:
        said = str(error)
    assert said.encode() or (tmp_path / "cache").exists()
    assert sorted(os.listdir(tmp_path)) in (["cache", "data"], ["data"])


def test_a_folder_of_images_that_leads_into_itself_is_refused(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        make_images(tmp_path / label)
        (tmp_path / label / "manifest.csv").unlink()
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    with pytest.raises(DataError, match="again is a link to a folder that it lies in"):
        load_dataset(ImageFolderData(path=tmp_path, image_size=4), cache_dir=tmp_path / "cache")
    (tmp_path / "a" / "again").unlink()
    os.rename(os.fsencode(tmp_path / "b"), os.fsencode(tmp_path) + b"/\xff")
    with pytest.raises(DataError, match="no text in UTF-8"):
        load_dataset(ImageFolderData(path=tmp_path, image_size=4), cache_dir=tmp_path.parent / "cache")


# --------------------------------------------------------------------------- weights, predictions, ledgers of others


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_nothing_is_ever_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(target), protocol=2)
    folder = Folder(tmp_path / "trial")
    for name in ("model.safetensors", "checkpoint.safetensors", "predictions/test.npz", "result.json"):
        folder.write(name, bomb)
    with pytest.raises(CheckpointError, match=r"model\.safetensors .* damaged"):
        load_weights(folder, "model.safetensors")
    assert load_checkpoint(folder, signature="x") is None
    for data in (bomb, npz(ids=np.array([Bomb(target)], dtype=object)), npz(ids=np.array(["a"]), labels=bomb)):
        folder.write("predictions/test.npz", data)
        with pytest.raises(StorageError, match=r"predictions/test\.npz is damaged"):
            load_predictions(folder, "test")
    with pytest.raises(StorageError, match=r"result\.json"):
        folder.read_json("result.json")
    np.savez(tmp_path / "m.npz", train_images=np.array([Bomb(target)], dtype=object))
    with pytest.raises(DataError, match="holds Python objects"):
        load_dataset(MedmnistData(path=tmp_path / "m.npz"), cache_dir=tmp_path / "cache")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    cached = tmp_path / "torch" / "hub" / "checkpoints" / "shufflenetv2_x0.5-f707e7126e.pth"
    cached.parent.mkdir(parents=True)
    for write in (lambda: cached.write_bytes(bomb), lambda: torch.save({"conv1.weight": Bomb(target)}, cached)):
        write()
        with pytest.raises(WeightsUnavailableError, match=r"failed: .*remove a damaged file from the cache"):
            load_imagenet("shufflenet_v2_x0_5", ImageNetPretraining())
    assert not target.exists()
    pickle.loads(bomb)
    assert target.exists(), "the bomb would not have exploded: this test could not fail"


def npz(**arrays: Any) -> bytes:
    """Return arrays, or what pretends to be one, as the bytes of an npz."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            part = io.BytesIO()
            if isinstance(array, bytes):
                part.write(array)
            else:
                np.save(part, array, allow_pickle=True)
            archive.writestr(f"{name}.npy", part.getvalue())
    return buffer.getvalue()


SCRIPT = "\"><img src=x onerror=alert(1)></script><script>alert(1)</script>'&"


def poison(value: Any) -> Any:
    """Put markup into every text of a JSON value that a person may have written."""
    if isinstance(value, dict):
        return {key: inner if key in KEPT else poison(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [poison(inner) for inner in value]
    return f"{value}{SCRIPT}" if isinstance(value, str) else value


#: What is looked up, compared or counted, and cannot be anything.
KEPT = {"signature", "needs", "kind", "seal", "shift", "set", "modality", "files", "arm", "factors"}


class Elements(HTMLParser):
    """Counts the elements of a page, and collects the attributes that run code."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.handlers += [name for name, value in attrs if name.startswith("on") or "javascript:" in (value or "")]


def read_page(place: Place) -> Elements:
    """Write the report of a ledger; return what its page consists of."""
    page = Elements()
    page.feed(
        Path(write_report(Ledger(str(place.storage), "tiny"), cache_dir=place.storage, examples=False).html).read_text()
    )
    return page


def test_the_report_of_a_hostile_ledger_runs_no_script(finished_study: FinishedStudy, tmp_path: Path) -> None:
    place = copy_place(finished_study.place, tmp_path)
    clean = read_page(place)
    root = Folder(place.ledger)
    root.write_json("plan.json", poison(root.read_json("plan.json")))
    for path in (place.ledger / "trials").iterdir():
        folder = Folder(path)
        folder.write_json("config.json", poison(folder.read_json("config.json")))
        result = folder.read_json("result.json")
        folder.write_json("result.json", result | {"files": describe_files(folder, result["files"])})
    # Not a trial of the reference: without it there is one figure less.
    failed = place.ledger / "trials" / root.read_json("plan.json")["trials"][-1]["signature"]
    (failed / "result.json").unlink()
    moment = {"reason": SCRIPT, "message": SCRIPT, "traceback": SCRIPT, "attempts": 1, "timestamp_ms": 1}
    Folder(failed).write_json("failure.json", {"signature": failed.name, "status": "failed"} | moment)
    hostile = read_page(place)
    assert hostile.handlers == []
    assert clean.tags["script"] > 1
    assert (hostile.tags["script"], hostile.tags["img"]) == (clean.tags["script"], clean.tags["img"])


@pytest.mark.parametrize("signature", ["../../outside", "/etc", "a/../../../outside", "x\0"])
def test_a_hostile_plan_leads_nowhere(finished_study: FinishedStudy, tmp_path: Path, signature: str) -> None:
    place = copy_place(finished_study.place, tmp_path / "study")
    folder = Folder(place.ledger)
    plan = folder.read_json("plan.json")
    plan["trials"][0] |= {"signature": signature, "needs": [signature]}
    folder.write_json("plan.json", plan)
    folder.write(
        "mlflow_runs.jsonl", json.dumps({"signature": signature, "run_id": "x", "kind": "../.."}).encode() + b"\n"
    )
    before = sorted(tmp_path.rglob("*"))
    ledger = Ledger(str(place.storage), "tiny")
    assert load_results(ledger).counts["missing"] == 1
    with pytest.raises(StorageError, match="refused to leave"):
        ledger.folder("trial", signature)
    assert sorted(tmp_path.rglob("*")) == before
