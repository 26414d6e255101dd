"""Environments of the loaders that ours is compared with: `python -m benchmarks.peers install FOLDER [NAME …]`.

Each loader gets a separate virtual environment, so that none of them enters our lock file. Debian packages are needed:
`apt-get install libopencv-dev libturbojpeg0-dev pkg-config g++` for FFCV, and
`apt-get install --no-install-recommends libavdevice59 libavfilter8` for SPDL's own decoder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

_TORCH = ("torch==2.15.0", "torchvision==0.29.2")
ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "torchvision": _TORCH,
    "webdataset": ("webdataset==1.0.2", *_TORCH),
    "litdata": ("litdata==0.2.76", *_TORCH),
    "mosaicml": ("mosaicml-streaming==0.13.0", *_TORCH),
    "dali": ("nvidia-dali-cuda120==2.4.0", "numpy==2.4.6"),
    "spdl": ("spdl==0.8.0", *_TORCH),
    "ray": (
        "ray[data,train]==2.60.0",
        "aiohttp==3.14.5",
        "pandas==3.1.1",
        "pyarrow==26.0.1",
        "pillow==13.0.0",
        *_TORCH,
    ),
    "ffcv": ("ffcv==1.0.2", "numba==0.68.1", "opencv-python==5.0.0.93", *_TORCH),
}
"""Packages of each environment."""


def interpreter(folder: Path, name: str) -> Path:
    """Return the path of an environment's Python."""
    return folder.absolute() / name / "bin" / "python"


def install(folder: Path, names: list[str]) -> None:
    """Make the environments that do not exist yet, and install their packages."""
    uv = str(Path(sys.executable).with_name("uv"))
    for name in names:
        python = interpreter(folder, name)
        if not python.exists():
            subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder / name)], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), *ENVIRONMENTS[name]], check=True)
        print(f"{name}: {', '.join(ENVIRONMENTS[name])}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Environments of other loaders.")
    parser.add_argument("command", choices=["install"])
    parser.add_argument("folder", type=Path, help="folder for the environments, about 10 GB in total")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"loaders, from {', '.join(ENVIRONMENTS)}; default: all"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - ENVIRONMENTS.keys():
        parser.error(f"unknown loader {', '.join(sorted(unknown))}: expected one of {', '.join(ENVIRONMENTS)}")
    install(arguments.folder, arguments.names or [*ENVIRONMENTS])


if __name__ == "__main__":
    main()
