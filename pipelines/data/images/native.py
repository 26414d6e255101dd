"""Compilation of `jpeg_region.c`, once per kind of processor; the result is kept in the user's cache.

Without a C compiler or a writable cache, the function does not exist. libjpeg-turbo then does the same, more slowly.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

SOURCE = Path(__file__).with_name("jpeg_region.c")
_FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")
_COMPILERS = ("cc", "gcc", "clang")
_TIMEOUT_S = 60

Region = Callable[[bytes, int, int, int, int, int, int], int]
"""Arguments: file, its length, left, top, right, bottom, address of the packed RGB pixels. Returns 0 if refused."""


@functools.cache
def jpeg_region() -> Region | None:
    """Return the compiled function, which is thread-safe; None if it cannot be compiled here."""
    try:
        library = _cache() / f"jpeg-{_digest()}.so"
        if not library.exists():
            _compile(library)
        function = ctypes.CDLL(str(library)).jpeg_region
    except (OSError, subprocess.SubprocessError):  # no compiler, no home folder, a full disk
        return None
    function.argtypes = (ctypes.c_char_p, ctypes.c_int64, *[ctypes.c_int] * 4, ctypes.c_void_p)
    function.restype = ctypes.c_int
    called: Region = function
    return called


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnet-ray"


def _digest() -> str:
    """Hash the source, the flags and the processor: nodes with different processors may share a home folder."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.open() if cpu.exists() else iter([platform.processor()])
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    content = (SOURCE.read_text(), *_FLAGS, platform.machine(), platform.system(), features)
    return hashlib.sha256("\n".join(content).encode()).hexdigest()[:16]


def _compile(library: Path) -> None:
    """Compile to a temporary file, then rename it: another process may compile at the same time."""
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise FileNotFoundError("no C compiler")
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built = Path(folder, library.name)
        command = [compiler, *_FLAGS, "-o", str(built), str(SOURCE)]
        subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)
        built.replace(library)
