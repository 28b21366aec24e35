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

PACKAGES = ("orchestrator", "robustsweep", "trainables")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_FILE_LINES, MAX_BODY_LINES = 400, 60
MAX_ENTRIES_AT_THE_TOP, MAX_MODULES = 17, 13
#: First words of docstrings that name neither what a caller gets nor what changes.
UNCLEAR = ("As", "Hear", "How", "Let", "Say", "Take", "Tell", "That", "Those", "What", "Who", "Whose")


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


def unknown_args(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """Yield the names below ``Args:`` of a docstring that are no parameters."""
    section = (ast.get_docstring(function) or "").partition("Args:\n")[2].partition("\n\n")[0]
    args = function.args
    known = {arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg) if arg}
    for names in re.findall(r"^    ((?:\*{0,2}\w+(?:, )?)+): ", section, re.MULTILINE):
        yield from (f"{function.name}: {name}" for name in names.replace("*", "").split(", ") if name not in known)


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
    assert [text for text in docstrings(tree) if text.split()[0] in UNCLEAR] == []
    assert [text for each in functions(tree) for text in unknown_args(each)] == []


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Yield every docstring of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def inits() -> list[Path]:
    """Return the __init__.py of every package but the public one, which re-exports."""
    return [path for path in SOURCES if path.name == "__init__.py" and path.parent.name != "robustsweep"]


@pytest.mark.parametrize("path", inits(), ids=relative)
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


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("ray", ["orchestrator/cluster/"]),
        ("mlflow", ["orchestrator/tracking/"]),
        ("(optuna|cmaes)", ["orchestrator/search/", "orchestrator/analysis/search_results.py"]),
        ("(plotly|kaleido|choreographer)", ["orchestrator/report/"]),
        ("captum", ["trainables/evaluation/attribution/"]),
    ],
)
def test_a_third_party_is_named_in_its_package_only(library: str, homes: list[str]) -> None:
    """import-linter's contracts, and that each of them is about something."""
    pattern = re.compile(rf"^\s*(from|import) {library}\b", re.MULTILINE)
    named = [relative(path) for path in SOURCES if pattern.search(path.read_text(encoding="utf-8"))]
    assert named
    assert [name for name in named if not name.startswith(tuple(homes))] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Also through imports inside functions and under TYPE_CHECKING."""
    import grimp

    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert sum(map(len, imports.values())) > 500
    left = set(imports)
    while True:  # take away what imports nothing that is left
        leaves = {module for module in left if not imports[module] & left}
        if not leaves:
            break
        left -= leaves
    assert sorted(left) == []


def test_packages_stay_small() -> None:
    entries = [path.name for path in (ROOT / "orchestrator").iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MAX_ENTRIES_AT_THE_TOP, entries
    for init in inits():
        modules = [path for path in init.parent.glob("*.py") if path != init]
        if init.parent.name != "trainables":  # its top level is a layer each
            assert len(modules) <= MAX_MODULES, init.parent


#: Names that were given up for the field's terms, written so that this file does not hold them.
GIVEN_UP = re.compile("zyg" + r"ote|\bdes" + "k\\b|back" + "stage|head_" + "start|made_" + "to_stay", re.IGNORECASE)


def test_names_that_were_given_up_do_not_come_back() -> None:
    found = []
    for path in committed():
        name = relative(path)
        if name in ("CHANGELOG.md", "docs/log.md") or name.startswith("docs/decisions/"):
            continue  # what was, is written there
        for line in path.read_text(encoding="utf-8").splitlines():
            if GIVEN_UP.search(line) and "head_" + "start_ray_commands" not in line:  # a key of Ray's cluster file
                found.append(f"{name}: {line.strip()}")
    assert found == []


def committed() -> list[Path]:
    """Return the text files of the repository, also those not committed yet."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = [name for name in done.stdout.split("\0") if name]
    return [
        ROOT / name for name in names if (ROOT / name).is_file() and Path(name).suffix not in (".png", ".npz", ".zip")
    ]


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
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").exists()
    assert os.access(ROOT / ".ci/run", os.X_OK)
