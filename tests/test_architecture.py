"""The one-way rule, where import-linter cannot see it: names below a package, and what an import drags in."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipelines", "infra", "resnet_core")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
VERBS = ("prepare", "train", "tune", "evaluate", "reproduce", "register", "predict", "serve")
MAX_LINES = 400  # of one concept; most are far shorter
MAX_FUNCTION_LINES = 60


def imported_names(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_that_import(name: str) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        if any(f"{imported}.".startswith(f"{name}.") for imported in imported_names(path))
    }


def test_the_core_imports_torch_torchvision_and_the_standard_library_only() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "torchvision", "resnet_core"}
    outside = {
        f"{path.name}: {name}"
        for path in SOURCES
        if path.is_relative_to(ROOT / "resnet_core")
        for name in imported_names(path)
        if name.partition(".")[0] not in allowed
    }
    assert outside == set()


def test_file_systems_of_pyarrow_only_in_storage() -> None:
    assert files_that_import("pyarrow.fs") <= {"infra/storage.py", "infra/s3.py"}


def test_tables_of_pyarrow_only_in_the_data_path() -> None:
    tables = files_that_import("pyarrow") - files_that_import("pyarrow.fs")
    assert {path for path in tables if not path.startswith("pipelines/data/")} == set()


def test_torch_in_infra_only_where_models_are_exported() -> None:
    in_infra = {path for path in files_that_import("torch") if path.startswith("infra/")}
    assert in_infra <= {"infra/exported.py", "infra/registry.py", "infra/served_model.py"}


def test_nothing_is_pickled() -> None:
    pickles = {name: files_that_import(name) for name in ("pickle", "cloudpickle", "dill", "joblib")}
    assert not any(pickles.values()), pickles
    calls = {
        (path.name, ast.unparse(node.func))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    }
    assert {call for call in calls if call[1] in ("torch.load", "torch.save", "torch.package.PackageExporter")} == set()
    assert [path.name for path in SOURCES if "allow_pickle=True" in path.read_text()] == []


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("resnet_core resnet_core.config", "torch"),
        ("pipelines.recipe pipelines.cli pipelines.prepare", "torch ray mlflow boto3 matplotlib pyarrow"),
        ("pipelines.data.task pipelines.data.write", "torch ray mlflow boto3 pyarrow"),
        # what decides where Ray listens is set before Ray is imported
        (" ".join(f"pipelines.{verb}" for verb in VERBS), "ray"),
        ("infra.storage infra.s3 infra.tracking infra.registry infra.plots", "torch ray mlflow boto3 matplotlib"),
    ],
)
def test_importing_is_cheap_and_silent(modules: str, heavy: str) -> None:
    script = f"import sys, {', '.join(modules.split())}; print(*sorted({set(heavy.split())!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (result.stdout.strip(), result.stderr) == ("", "")


def test_files_and_functions_stay_readable() -> None:
    long_files = {path.name: count for path in SOURCES if (count := len(path.read_text().splitlines())) > MAX_LINES}
    assert long_files == {}
    functions = (
        (path.name, node.name, (node.end_lineno or 0) - node.lineno + 1)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert [found for found in functions if found[2] > MAX_FUNCTION_LINES] == []
    assert [path.name for path in SOURCES if path.stem in ("utils", "helpers", "common")] == []
