"""Limits that keep the code readable, contracts between packages, and what must never lie in the repository."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SOURCES = sorted(path for package in ("orchestrator", "trainables") for path in (ROOT / package).rglob("*.py"))
MAX_FILE_LINES, MAX_BODY_LINES = 400, 60


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first statement after the docstring to the end."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def undocumented(node: ast.AST, prefix: str = "") -> Iterator[str]:
    """Yield the public classes, functions and methods that have no docstring; those inside functions are private."""
    for child in getattr(node, "body", []):
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or child.name.startswith("_"):
            continue
        overload = any(ast.unparse(decorator).endswith("overload") for decorator in child.decorator_list)
        protocol = isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases)
        if ast.get_docstring(child) is None and not overload and not protocol:
            yield f"{prefix}{child.name}"
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child, f"{prefix}{child.name}.")


def test_there_is_something_to_look_at() -> None:
    names = {relative(path) for path in SOURCES}
    assert {"orchestrator/driver/run.py", "trainables/trial.py", "orchestrator/report/write.py"} <= names


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_file_stays_within_its_limits(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    tree = parse(path)
    assert ast.get_docstring(tree), "the file has no docstring"
    assert [each.name for each in functions(tree) if body_lines(each) > MAX_BODY_LINES] == []
    assert list(undocumented(tree)) == []


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name == "__init__.py"], ids=relative)
def test_an_init_file_holds_a_docstring_only(path: Path) -> None:
    tree = parse(path)
    assert len(tree.body) == 1
    assert ast.get_docstring(tree)


def test_the_limits_would_notice() -> None:
    long = ast.parse("def f():\n    '''doc'''\n" + "    x = 1\n" * 61)
    assert [each.name for each in functions(long) if body_lines(each) > MAX_BODY_LINES] == ["f"]
    tree = ast.parse("class A:\n    def b(self): ...\n    def _c(self): ...\ndef d():\n    'doc'\n")
    assert list(undocumented(tree)) == ["A", "A.b"]


def test_packages_import_each_other_as_agreed() -> None:
    lint = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_one_module_each_names_ray_and_mlflow() -> None:
    for package, home in (
        ("ray", "orchestrator/cluster/tune_executor.py"),
        ("mlflow", "orchestrator/tracking/client.py"),
    ):
        pattern = re.compile(rf"^\s*(from|import) {package}\b", re.MULTILINE)
        assert [relative(path) for path in SOURCES if pattern.search(path.read_text(encoding="utf-8"))] == [home]


def committed() -> list[Path]:
    """Return the text files of the repository, also those not committed yet."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = [name for name in done.stdout.split("\0") if name]
    return [ROOT / name for name in names if (ROOT / name).is_file() and Path(name).suffix not in (".png", ".npz", ".zip")]


#: Written so that this file does not hold what it looks for.
MACHINE_PATHS = [re.compile("/" + name + r"(?![\w-])") for name in ("work", "root", "home/[a-z]+/", "Users/[a-z]+/")]
REGISTRIES = [re.compile("pypi" + r"\.org"), re.compile("--(extra-)?index" + "-url"), re.compile("arti" + "factory")]


def test_nothing_names_a_machine_or_a_package_registry() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what belongs to the repository is not known")
    files = committed()
    assert len(files) > 50
    found = []
    for path in files:
        text = path.read_text(encoding="utf-8")
        hits = [match.group() for pattern in MACHINE_PATHS + REGISTRIES for match in pattern.finditer(text)]
        found += [f"{relative(path)}: {hit}" for hit in hits if "home/ubuntu" not in hit and "home/ray" not in hit]
    assert found == []


def test_the_reading_order_of_the_readme_leads_to_files() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for word in ("make quickstart", "make test"):
        assert word in readme
    linked = set(re.findall(r"\]\((?!https?:|#)([^)#]+)", readme)) | set(re.findall(r"`((?:\w+/)+\w+\.\w+)`", readme))
    assert {"configs/quickstart.yaml", "orchestrator/driver/run.py", "trainables/trial.py"} <= linked
    ours = {name for name in linked if not name.startswith(("../", "results/"))}
    assert [name for name in sorted(ours) if not (ROOT / name).exists()] == []


def test_ray_accepts_the_cluster_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own checks before ``ray up`` does anything; private functions of 2.60."""
    import yaml
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["max_workers"] > 0
    assert prepared["provider"]["type"] == "aws"
    workers = {name: kind for name, kind in prepared["available_node_types"].items() if name != "head"}
    assert workers
    assert "RAY_AUTH_MODE=token" in str(config)
    broken = dict(prepared, no_such_key=1)
    with pytest.raises(Exception, match="no_such_key"):
        validate_config(broken)


def test_the_package_says_that_it_is_typed() -> None:
    for package in ("orchestrator", "trainables"):
        assert (ROOT / package / "py.typed").exists()
    assert os.access(ROOT / ".ci/run", os.X_OK)
