"""Where images come from: one word, path or URI in, one `Source` out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from infra.errors import UserError
from pipelines.data.samples import Source
from pipelines.data.sources import cifar, folders, idx, imagenet, parquet, webdataset
from pipelines.data.sources.mnist5k import MNIST5K, open_mnist5k
from pipelines.data.sources.place import Place, find_place
from pipelines.data.sources.splits import Choice, with_validation

if TYPE_CHECKING:
    from infra.storage import Store

__all__ = ["EXPECTS", "open_source"]

_Open = Callable[[Place, Choice], Source | None]

_KINDS: tuple[tuple[str, _Open], ...] = (
    (imagenet.EXPECTS, imagenet.open_imagenet),
    (cifar.EXPECTS, cifar.open_cifar),
    (idx.EXPECTS, idx.open_idx),
    (webdataset.EXPECTS, webdataset.open_webdataset),
    (parquet.EXPECTS, parquet.open_parquet),
    (folders.EXPECTS, folders.open_folders),
)
"""In the order of trying: what says most about itself first."""

EXPECTS = "; ".join((*(expects for expects, _ in _KINDS), f"the word {MNIST5K}"))


def open_source(
    text: str, *, holdout: float = 0.1, validation: float = 0.0, seed: int = 0, keep: Store | None = None
) -> Source:
    """List a source; nothing is decoded yet, and archives are not looked into.

    Args:
        text: a folder or s3://bucket/prefix that holds one of `EXPECTS`, one such file, or the word mnist5k.
        holdout: share of each class that becomes the test split where the source has none of its own.
        validation: share of each class's training images that becomes the validation split, where the source has none.
        seed: decides which images are held out.
        keep: where the index of archives is kept while the data set is made (`_progress/`); None = nowhere.

    Raises:
        UserError: no such source, or one that is not whole.
    """
    choice = Choice(holdout=holdout, validation=validation, seed=seed, keep=keep)
    if text == MNIST5K:
        return with_validation(open_mnist5k(seed), choice)
    place = find_place(text)
    for _, open_kind in _KINDS:
        source = open_kind(place, choice)
        if source is not None:
            return with_validation(source, choice)
    raise UserError(f"source {text} holds none of what is known: {EXPECTS}")
