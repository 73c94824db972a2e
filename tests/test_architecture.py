"""The layout: imports run one way, files stay short, and the package starts quickly."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ecgad"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [  # a module imports from earlier rows, never from its own or a later one
    {"record", "parts", "files"},
    {"read", "prepare", "methods"},
    {"benchmarks"},
    {"score", "calibrate", "drift", "train", "flops", "metrics", "ranges", "export", "card"},
    {"hours"},
    {"bundle"},
    {"recalibrate"},
    {"learn", "tabulate", "image_plans"},
    {"evaluate"},
    {"report"},
    {"screen"},
    {"__init__"},
    {"__main__"},
]
ALLOWED = {("record", "report")}  # `Result.plot` draws its page, inside the function
HEAVY = {
    "cyclopts", "jinja2", "matplotlib", "onnx", "onnxruntime", "pandas", "pyarrow", "rich",
    "safetensors", "scipy", "sklearn", "starlette", "torch", "uvicorn", "wfdb",
}  # fmt: skip


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def stage(path: Path) -> str:
    """The file or folder at the top of the package: `read` for `ecgad/read/wfdb.py`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Our own modules that a file imports, anywhere in it, as full names."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            found |= _of_package(node)
    return {name for name in found if name.startswith("ecgad.")} - {"ecgad.__version__"}


def _of_package(node: ast.ImportFrom) -> set[str]:
    """`from p import x`: the module p.x where there is one, else p or what its `__init__` gives."""
    if node.module == "ecgad":
        stages = set().union(*LAYERS) | {"__version__"}
        return {f"ecgad.{a.name if a.name in stages else '__init__'}" for a in node.names}
    folder = PACKAGE.parent / (node.module or "").replace(".", "/")
    inside = {a.name for a in node.names if (folder / f"{a.name}.py").exists()}
    return {f"{node.module}.{name}" for name in inside} or {node.module or ""}


def layer(name: str) -> int:
    return next(i for i, row in enumerate(LAYERS) if name in row)


def test_every_stage_has_its_place_in_the_order():
    placed = set().union(*LAYERS)
    assert {stage(path) for path in FILES} <= placed


def test_imports_run_one_way():
    wrong = []
    for path in FILES:
        here = stage(path)
        for name in imports(path):
            there = name.split(".")[1]
            if there != here and (here, there) not in ALLOWED and layer(there) >= layer(here):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "methods").glob("[!_]*.py")), ids=lambda p: p.stem
)
def test_a_method_imports_only_parts(path):
    assert all(name.startswith("ecgad.parts.") for name in imports(path))


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "methods").glob("[!_]*.py")), ids=lambda p: p.stem
)
def test_a_method_file_holds_config_and_model_and_no_other_class(path):
    classes = {node.name: node for node in tree(path).body if isinstance(node, ast.ClassDef)}
    assert {name for name in classes if not name.startswith("_")} == {"Config", "Model"}
    assert [ast.unparse(base) for base in classes["Model"].bases] == ["Detector"]
    fields = [node for node in classes["Config"].body if isinstance(node, ast.AnnAssign)]
    assert len(fields) <= 12


def test_reading_a_method_means_opening_at_most_ten_files():
    for path in (PACKAGE / "methods").glob("[!_]*.py"):
        met, ahead = set(), {path}
        while ahead:
            met.add(file := ahead.pop())
            files = {PACKAGE.parent / (name.replace(".", "/") + ".py") for name in imports(file)}
            ahead |= {f for f in files if f.exists()} - met
        assert len(met) <= 10


def test_files_stay_under_400_lines():
    lengths = {str(p.relative_to(PACKAGE)): len(p.read_text("utf-8").splitlines()) for p in FILES}
    assert not {path: n for path, n in lengths.items() if n >= 400}


def test_no_file_is_named_for_what_it_is_not():
    names = {path.stem for path in FILES} | {path.parent.name for path in FILES}
    assert not names & {"utils", "misc", "common", "base", "manager", "engine", "helper", "helpers"}


@pytest.mark.parametrize("name", ["score", "train", "metrics", "ranges", "export", "bundle"])
def test_what_others_call_says_what_it_does(name):
    nodes = tree(PACKAGE / f"{name}.py").body
    made = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    rules = [node for each in made if each.name == "Rule" for node in each.body]
    made += [node for node in rules if isinstance(node, ast.FunctionDef)]
    silent = [node.name for node in made if not ast.get_docstring(node)]
    assert not [name for name in silent if not name.startswith("_")]


def cpu_seconds(code: str) -> float:
    """Processor time of a fresh interpreter; unlike the clock, it bears a busy machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_importing_the_package_is_quick():
    """0.3 s on an idle machine; twice that where neighbours share its cores and caches."""
    bare = min(cpu_seconds("pass") for _ in range(3))
    assert min(cpu_seconds("import ecgad") for _ in range(3)) - bare < 0.6


def test_importing_the_package_loads_nothing_heavy():
    code = "import ecgad, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert not HEAVY & {name.partition(".")[0] for name in done.stdout.split()}
