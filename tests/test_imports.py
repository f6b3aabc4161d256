"""The import rules of the design: layers point one way, and the torch-free half stays torch-free."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "linscale"
# A unit may import only units of an earlier row; units of one row do not see each other.
ROWS = [
    ["config"],
    ["run_folder", "distributed", "shape"],
    ["ops", "data"],
    ["layers"],
    ["models"],
    ["checkpoint", "generate"],
    ["adapt"],
    ["evaluate"],
    ["train"],
    ["study"],
    ["serve"],
    ["cli"],
]
RANK = {unit: row for row, units in enumerate(ROWS) for unit in units}
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.stem in RANK]


def unit_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_units(path):
    """Every unit that a file imports, at the top or inside functions, also by `from linscale import unit`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "linscale":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names if alias.name in RANK]
        elif isinstance(node, ast.Import):
            yield from [a.name.split(".")[1] for a in node.names if a.name.startswith("linscale.")]


@pytest.mark.parametrize("unit", sorted({unit_of(path) for path in FILES}))
def test_a_unit_imports_only_what_stands_to_its_left(unit):
    assert unit in RANK, f"{unit} has no place in the layers: add it to ROWS and to the design"
    for path in FILES:
        for other in imported_units(path) if unit_of(path) == unit else ():
            assert other == unit or RANK[other] < RANK[unit], f"{path.relative_to(PACKAGE)} must not import {other}"


def test_the_rule_sees_a_violation(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "def f():\n    from linscale.train import config\n    import linscale.study.fit\n    from linscale import cli\n"
    )
    assert set(imported_units(path)) == {"train", "study", "cli"}


LAW_FILES = ("surface", "overtrain", "repeat", "sigmoid", "isoflop", "envelope", "pac")
TORCH_FREE = [
    "linscale",
    *(f"linscale.{name}" for name in ("config", "run_folder", "shape", "data", "cli")),
    *(
        f"linscale.study.{name}"
        for name in ("results", "laws", "envelope", "fit", "pac_study", "report", "design", "prospect")
    ),
    *(f"linscale.study.table.{name}" for name in ("points", "fit", "sensitivity", *LAW_FILES)),
    *(f"linscale.study.sources.{name}" for name in ("read", "runs", "trainer_state", "harness_results", "wandb_runs")),
    *(f"linscale.study.prediction.{name}" for name in ("forecast", "contest")),
]


def with_torch(modules, folder=None):
    """The first of the modules that loads torch when a new process, in `folder`, imports them in turn; or ""."""
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    code += "    if 'torch' in sys.modules:\n        sys.exit(print(name))"
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_torch_free_half_imports_no_torch():
    assert with_torch(TORCH_FREE) == ""


def test_that_rule_sees_torch(tmp_path):
    (tmp_path / "torch.py").touch()
    (tmp_path / "within.py").write_text("def f():\n    pass\n\nimport torch\n")
    assert with_torch(["linscale.config", "within", "linscale.shape"], tmp_path) == "within"


def test_no_environment_switches_and_no_kwargs():
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if not any(words in text for words in ("**", "environ", "getenv")):
            continue  # read in vain
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.args.kwarg is None, f"{path}: {node.name} takes **{node.args.kwarg.arg}"
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("environ", "getenv"), f"{path} reads the environment"
