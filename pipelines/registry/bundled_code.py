"""Code that is stored in a registered model, to read requests where this project is not installed.

The list of files is derived from the imports of `pipelines.serving.preprocessing`, so it is always complete.
"""

from __future__ import annotations

import ast
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from infra.registry.exported_program import RequestReader

_ROOT = Path(__file__).resolve().parents[2]
_READER = "pipelines.serving.preprocessing"
_DATA = ("pipelines/data/images/jpeg_region.c",)  # compiled on first use
_PACKAGES = ("pillow", "simplejpeg", "cykooz-resizer")


def request_reader() -> RequestReader:
    """Return the module that reads requests, the files that it imports, and the packages that these files need."""
    return RequestReader(
        module=_READER,
        files={path: _ROOT / path for path in (*bundled_files(_READER), *_DATA)},
        requirements=tuple(pinned for package in _PACKAGES if (pinned := _pinned(package))),
    )


def bundled_files(module: str) -> list[str]:
    """Return the files of this project that importing `module` needs, as sorted paths relative to the root.

    Imports under `if TYPE_CHECKING` are left out; those within functions are kept.
    """
    found: dict[str, Path] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        file = _file_of(name)
        if file is None:
            continue
        path = file.relative_to(_ROOT).as_posix()
        if path not in found:
            found[path] = file
            pending += [*_imported(file), *_parents(name)]
    return sorted(found)


def _file_of(name: str) -> Path | None:
    """Return the file of a module or package of this project; None for any other name."""
    if name.partition(".")[0] not in ("infra", "pipelines", "resnet_core"):
        return None
    place = _ROOT / name.replace(".", "/")
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _imported(file: Path) -> list[str]:
    """Return every dotted name that a file may import as a module."""
    names: list[str] = []
    pending: list[ast.AST] = [ast.parse(file.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            pending += ast.iter_child_nodes(node)
    return names


def _pinned(package: str) -> str:
    try:
        return f"{package}=={version(package)}"
    except PackageNotFoundError:  # no wheel for this type of CPU: Pillow resizes instead
        return ""
