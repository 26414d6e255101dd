"""Sources of images to classify: image files, a data set that prepare.py wrote, or Parquet with an image column."""

from collections.abc import Sequence
from pathlib import Path

from infra.errors import UserError
from pipelines.data.prepare.sources.place import IMAGE_SUFFIXES, Place, find_place
from pipelines.data.shards.manifest import MANIFEST, is_dataset, load_manifest
from pipelines.inference.sources.dataset import DatasetImages
from pipelines.inference.sources.files import ImageFiles
from pipelines.inference.sources.images import Images
from pipelines.inference.sources.parquet import ParquetImages


def find_images(texts: Sequence[str], split: str | None = None) -> Images:
    """Return the source of images that the user named: files and folders, one data set, or one place with Parquet.

    Args:
        texts: paths of files or folders, or s3://bucket/prefix.
        split: split of a data set; None = all splits.

    Raises:
        UserError: there are no images, or sources that cannot be combined.
    """
    places = [_place(text) for text in texts]
    large = next((place for place in places if _is_dataset(place) or _is_parquet(place)), None)
    if large is not None and len(places) > 1:
        raise UserError(f"{large.text} is a data set or Parquet: name it alone")
    if large is not None and _is_dataset(large):
        return _dataset(large, split)
    if split:
        raise UserError(f"--split is for a data set that prepare.py wrote: {texts[0]} has no {MANIFEST}")
    return ImageFiles.of(places) if large is None else ParquetImages.of(large)


def _place(text: str) -> Place:
    if "://" not in text and not Path(text).exists():
        raise UserError(f"there is no image file {text}")
    return find_place(text)


def _is_dataset(place: Place) -> bool:
    return MANIFEST in place.files and not place.is_file and is_dataset(place.store)


def _is_parquet(place: Place) -> bool:
    parquet, images = place.ending(".parquet"), place.ending(*IMAGE_SUFFIXES)
    if parquet and images:
        raise UserError(f"{place.text} holds both {parquet[0]} and {images[0]}: name the files of one kind only")
    return bool(parquet)


def _dataset(place: Place, split: str | None) -> DatasetImages:
    manifest = load_manifest(place.store)
    if split:
        manifest.require_split(split)
    return DatasetImages(store=place.store, manifest=manifest, splits=(split,) if split else tuple(manifest.splits))
