"""What goes into a registered model beside its program: it answers requests where this project is not installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from infra.exported import RequestReader

_ROOT = Path(__file__).resolve().parents[2]
_FILES = (
    "infra/__init__.py",
    "infra/errors.py",
    "infra/interruption.py",
    "infra/nearest.py",
    "pipelines/__init__.py",
    "pipelines/data/__init__.py",
    "pipelines/data/boxes.py",
    "pipelines/data/decode.py",
    "pipelines/data/depth.py",
    "pipelines/data/formats.py",
    "pipelines/data/jpeg.py",
    "pipelines/data/jpeg_region.c",
    "pipelines/data/manifest.py",
    "pipelines/data/native.py",
    "pipelines/data/resize.py",
    "pipelines/data/shards.py",
    "pipelines/data/views.py",
    "pipelines/data/windows.py",
    "pipelines/serving/__init__.py",
    "pipelines/serving/pictures.py",
)
_PACKAGES = ("pillow", "simplejpeg", "cykooz-resizer")


def request_reader() -> RequestReader:
    """`pipelines.serving.pictures`, what it imports, and the packages that these need, as they are installed here."""
    return RequestReader(
        module="pipelines.serving.pictures",
        files={path: _ROOT / path for path in _FILES},
        requirements=tuple(pinned for package in _PACKAGES if (pinned := _pinned(package))),
    )


def _pinned(package: str) -> str:
    try:
        return f"{package}=={version(package)}"
    except PackageNotFoundError:  # no wheel for this processor: Pillow resizes
        return ""
