"""What is uploaded of a folder, and what may go along as an environment variable."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from orchestrator.cluster.jobs.upload import describe_size, find_upload, is_secret, read_variables
from trainables.errors import StudyError


def write(root: Path, *names: str, content: str = "x") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def names(root: Path, *excludes: str) -> list[str]:
    return [file.as_posix() for file in find_upload(root, excludes).files]


def test_results_data_environments_and_secrets_stay_here(tmp_path: Path) -> None:
    write(tmp_path, "study.yaml", "code/model.py", "code/data.py", "configs/a/b.yaml")
    write(tmp_path, ".git/config", ".venv/bin/python", "results/tiny/plan.json", "data/0.png", "code/data/0.png")
    write(tmp_path, "code/__pycache__/model.pyc", ".env", ".env.local", ".netrc", "keys/id.pem", ".aws/credentials")
    assert names(tmp_path) == ["code/data.py", "code/model.py", "configs/a/b.yaml", "study.yaml"]
    assert names(tmp_path, "configs/", "*.py") == ["study.yaml"]


def test_ignore_files_count_from_their_folder_on(tmp_path: Path) -> None:
    write(tmp_path, "study.yaml", "notes.txt", "a/notes.txt", "a/b/big.bin", "a/b/kept.bin", "c/big.bin", "logs")
    (tmp_path / ".gitignore").write_text("# comment\n/notes.txt\nlogs/\n")
    (tmp_path / "a" / ".rayignore").write_text("*.bin\n!kept.bin\n")
    found = names(tmp_path)
    assert found == [".gitignore", "a/.rayignore", "a/b/kept.bin", "a/notes.txt", "c/big.bin", "logs", "study.yaml"]


def test_links_to_files_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    write(tmp_path, "study.yaml", "code/model.py")
    (tmp_path / "link.yaml").symlink_to("study.yaml")
    (tmp_path / "code" / "round").symlink_to(tmp_path)
    (tmp_path / "dead").symlink_to("nowhere")
    assert names(tmp_path) == ["code/model.py", "link.yaml", "study.yaml"]


def test_the_package_depends_on_names_contents_and_permissions_alone(tmp_path: Path) -> None:
    digests = []
    for number in (1, 2):
        root = tmp_path / str(number)
        write(root, *(["b.txt", "a/run.sh"] if number == 1 else ["a/run.sh", "b.txt"]))
        (root / "a" / "run.sh").chmod(0o755)
        package = tmp_path / f"{number}.zip"
        find_upload(root).pack(package)
        digests.append(hashlib.sha256(package.read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    with zipfile.ZipFile(package) as archive:
        assert archive.namelist() == ["a/run.sh", "b.txt"]
        assert archive.getinfo("a/run.sh").external_attr >> 16 == 0o100755
        assert archive.read("b.txt") == b"x"


def test_too_much_is_refused_with_the_largest_entries(tmp_path: Path) -> None:
    write(tmp_path, "study.yaml")
    write(tmp_path, "images/0.png", "images/1.png", content="x" * 3000)
    write(tmp_path, "weights.bin", content="x" * 5000)
    assert find_upload(tmp_path, max_bytes=11_001).describe() == f"4 files, 10.7 KiB, of {tmp_path}"
    with pytest.raises(
        StudyError, match=r"largest entries are images 5\.9 KiB, weights\.bin 4\.9 KiB, study\.yaml 0\.0 KiB"
    ):
        find_upload(tmp_path, max_bytes=11_000)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0.0 KiB"), (1536, "1.5 KiB"), (3 * 2**20, "3.0 MiB"), (5 * 2**29, "2.5 GiB")]
)
def test_sizes_are_said_in_the_unit_that_fits(size: int, text: str) -> None:
    assert describe_size(size) == text


def test_variables_are_passed_by_name() -> None:
    environment = {"OMP_NUM_THREADS": "2", "TORCH_HOME": "/shared/torch", "OTHER": "3"}
    assert read_variables(["OMP_NUM_THREADS", "TORCH_HOME"], environment) == {
        "OMP_NUM_THREADS": "2",
        "TORCH_HOME": "/shared/torch",
    }
    with pytest.raises(StudyError, match="got --env MISSING, which is not set here"):
        read_variables(["MISSING"], environment)
    with pytest.raises(StudyError, match="got --env OTHER=…, expected a name alone") as error:
        read_variables(["OTHER=hidden-value"], environment)
    assert "hidden-value" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_SECRET_ACCESS_KEY", "c0ffee"),
        ("MLFLOW_TRACKING_PASSWORD", "c0ffee"),
        ("HF_TOKEN", "c0ffee"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "c0ffee"),
        ("PGPASSWORD", "c0ffee"),
        ("ROBUSTSWEEP_NOTIFY", "mailto://c0ffee"),
        ("HARMLESS", "http://user:c0ffee@mlflow:5000"),
        ("HARMLESS", "https://c0ffee@git/repository"),
        ("HARMLESS", "Server=db;Password=c0ffee"),
        ("HARMLESS", "AKIA5EC2E7000000C0FF"),
        ("HARMLESS", "-----BEGIN RSA PRIVATE KEY-----\nc0ffee"),
    ],
)
def test_secrets_are_refused_without_being_shown(name: str, value: str) -> None:
    with pytest.raises(StudyError, match=f"got --env {name}, which looks like a secret by its") as error:
        read_variables([name], {name: value})
    assert value not in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["postgresql://user@db/mlflow", "s3://bucket/a@b", "execution.mlflow=http://mlflow:5000", "tokens per image"],
)
def test_what_holds_no_secret_is_taken(text: str) -> None:
    assert not is_secret(text)
