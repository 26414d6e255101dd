"""The one-way rule, where import-linter cannot see it: names below a package, and what an import drags in."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipelines", "infra", "resnet_core")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
VERBS = ("prepare", "train", "tune", "evaluate", "reproduce", "register", "predict", "serve")
MAX_LINES = 400  # of one concept; most are far shorter
MAX_FUNCTION_LINES = 60
MAX_VERB_LINES = 80
MIN_LINES = 60  # of a file with a single importer


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imported_names(path: Path) -> list[str]:
    """Dotted names of everything a file imports, inside functions too."""
    names = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def files_that_import(name: str) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        if any(f"{imported}.".startswith(f"{name}.") for imported in imported_names(path))
    }


def test_the_core_imports_torch_torchvision_and_the_standard_library_only() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "torchvision", "resnet_core"}
    outside = {
        f"{path.name}: {name.partition('.')[0]}"
        for path in SOURCES
        if path.is_relative_to(ROOT / "resnet_core")
        for name in imported_names(path)
        if name.partition(".")[0] not in allowed
    }
    assert outside == {"average_precision.py: pycocotools"}  # when COCO's metrics are computed (decision 41)


def test_file_systems_of_pyarrow_only_in_storage() -> None:
    assert files_that_import("pyarrow.fs") <= {"infra/storage/open.py", "infra/storage/s3.py"}


def test_tables_of_pyarrow_only_in_the_data_path() -> None:
    tables = files_that_import("pyarrow") - files_that_import("pyarrow.fs")
    elsewhere = {
        "pipelines/evaluation/predictions.py",
        "pipelines/inference/output_files.py",
        "pipelines/inference/sources/parquet.py",
        "pipelines/evaluation/label_predictions.py",
        "pipelines/training/ordered.py",
    }
    assert {path for path in tables if not path.startswith("pipelines/data/")} <= elsewhere


def test_private_names_of_ray_only_in_one_folder() -> None:
    private = {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        for name in imported_names(path)
        if name.startswith("ray.") and any(part.startswith("_") for part in name.split("."))
    }
    # infra does not import pipelines; it needs the address and the schema of a cluster, and the start of a node
    in_infra = {path for path in private if not path.startswith("pipelines/ray_internals/")}
    assert in_infra == {"infra/cluster.py", "infra/local_ray/start.py"}


def test_torch_in_infra_only_where_models_are_exported() -> None:
    in_infra = {path for path in files_that_import("torch") if path.startswith("infra/")}
    assert in_infra <= {
        "infra/registry/exported_program.py",
        "infra/registry/versions.py",
        "infra/registry/served_model.py",
    }


def test_nothing_is_pickled() -> None:
    pickles = {name: files_that_import(name) for name in ("pickle", "cloudpickle", "dill", "joblib")}
    assert not any(pickles.values()), pickles
    calls = {
        (path.name, ast.unparse(node.func))
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call)
    }
    loading = {call for call in calls if call[1] in ("torch.load", "torch.save", "torch.package.PackageExporter")}
    assert loading == {("contents.py", "torch.load")}  # of weights that others have published
    contents = (ROOT / "pipelines/pretrained/contents.py").read_text()
    assert contents.count(" torch.load(") == contents.count("weights_only=True") == 1
    assert [path.name for path in SOURCES if "allow_pickle=True" in path.read_text()] == []


def test_importing_is_cheap_and_silent() -> None:
    """Each group is imported after those before it, so that its libraries are what no group up to it imports."""
    groups = {
        # a mistake is told within a second; and what decides where Ray listens is set before Ray is imported
        "resnet_core resnet_core.config pipelines.config.recipe pipelines.cli pipelines.prepare "
        "pipelines.data.tasks.crops pipelines.data.prepare.prepare": "torch ray mlflow boto3 matplotlib pyarrow",
        " ".join(f"pipelines.{verb}" for verb in VERBS): "torch ray mlflow boto3 matplotlib sklearn",
        "pipelines.training.driver pipelines.tuning.study infra.storage infra.storage.s3 infra.tracking.tracker "
        "infra.registry.versions infra.plots.training": "torch ray mlflow boto3 matplotlib sklearn",
        # in Train's actor for data
        "pipelines.training.stream pipelines.training.messages": "torch mlflow boto3 matplotlib sklearn",
        "pipelines.tuning.schedulers": "torch mlflow boto3 matplotlib sklearn",
        # in each process of a trial; the compiler takes two seconds
        "pipelines.tuning.trial resnet_core.models pipelines.training.build": "mlflow boto3 matplotlib sklearn "
        "torch._dynamo pycocotools",
        "resnet_core.detection resnet_core.segmentation": "mlflow boto3 matplotlib sklearn pycocotools",
    }
    script = f"""if True:
        import importlib, sys
        for modules, heavy in {groups!r}.items():
            for module in modules.split():
                importlib.import_module(module)
                for library in set(heavy.split()) & set(sys.modules):
                    print(module, "imports", library)
            if "resnet_core.models" in modules:  # each command shows the cost of its network
                from resnet_core.config.variants import VARIANTS
                from resnet_core.models.cost import cost
                found = cost(VARIANTS["resnet50"], size=224, num_classes=1000)
                print(found.multiply_adds, "torch._dynamo" in sys.modules)
    """
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (result.stdout.splitlines(), result.stderr) == (["4089184256 False"], "")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def importers() -> dict[str, set[str]]:
    """Module -> modules of this project that import it, also for type checking."""
    modules = {module_of(path): path for path in SOURCES}
    found: dict[str, set[str]] = {module: set() for module in modules}
    for module, path in modules.items():
        for name in imported_names(path):
            while name and name not in modules:
                name = name.rpartition(".")[0]
            if name and name != module:
                found[name].add(module)
    return found


def test_no_import_circle() -> None:
    imports: dict[str, set[str]] = {}
    for module, users in importers().items():
        for user in users:
            imports.setdefault(user, set()).add(module)
    graph = TopologicalSorter(imports)
    try:
        graph.prepare()
    except CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(error.args[1])}")


def test_what_runs_a_program_stands_last() -> None:
    """Names that are defined behind it are missing when the file is run."""
    astray = []
    for path in SOURCES:
        body = parsed(path).body
        guards = [node for node in body if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)]
        if guards and body[-1] is not guards[-1]:
            astray.append(module_of(path))
    assert astray == []


def test_a_class_name_means_one_thing() -> None:
    places: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(module_of(path))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_a_verb_parses_calls_and_prints() -> None:
    lines = {verb: len((ROOT / f"pipelines/{verb}.py").read_text().splitlines()) for verb in VERBS}
    assert {verb: count for verb, count in lines.items() if count > MAX_VERB_LINES} == {}


def test_no_small_file_with_one_importer() -> None:
    users = importers()
    small = {
        module_of(path): len(path.read_text().splitlines()) for path in SOURCES if path.name not in ("__init__.py",)
    }
    assert [name for name, lines in small.items() if lines < MIN_LINES and len(users[name]) == 1] == []


def test_files_and_functions_stay_readable() -> None:
    long_files = {path.name: count for path in SOURCES if (count := len(path.read_text().splitlines())) > MAX_LINES}
    assert long_files == {}
    functions = (
        (path.name, node.name, (node.end_lineno or 0) - node.lineno + 1)
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert [found for found in functions if found[2] > MAX_FUNCTION_LINES] == []
    assert [path.name for path in SOURCES if path.stem in ("utils", "helpers", "common")] == []
