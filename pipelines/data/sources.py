"""Where images come from: one word or path in, one `Source` out."""

from __future__ import annotations

from pathlib import Path

from infra.errors import UserError
from pipelines.data.arrays import find_idx_files, open_idx, open_mnist5k
from pipelines.data.folders import open_folder
from pipelines.data.samples import Source

MNIST5K = "mnist5k"


def open_source(text: str, *, holdout: float = 0.1, seed: int = 0) -> Source:
    """List a source; nothing is decoded yet.

    Args:
        text: a folder of class folders (with or without train/ and val/), a folder of IDX files, or the word mnist5k.
        holdout: share of each class that becomes the test split where a folder has none of its own.
        seed: decides which images are held out.

    Raises:
        UserError: no such source, or one that is not whole.
    """
    if text == MNIST5K:
        return open_mnist5k(seed)
    folder = Path(text).expanduser()
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"source {text} {what}: give a folder of class folders or of IDX files, or the word {MNIST5K}")
    files = find_idx_files(folder)
    if files:
        return open_idx(folder, files)
    return open_folder(folder, holdout=holdout, seed=seed)
