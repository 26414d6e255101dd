"""The section `prepare` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.config.crop import MAX_PIXELS, MEGAPIXEL

MAX_MEGAPIXELS = MAX_PIXELS // MEGAPIXEL
"""Largest image that training, evaluation and predict decode (`pipelines.data.images.pillow`)."""
_MAX_QUALITY = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """Form, size and splits of the shards that a source becomes."""

    form: Literal["auto", "original", "jpeg", "raw"] = "auto"
    """Stored form; auto = original bytes for image files, raw pixels for arrays."""
    size: int = 0
    """Pixels: for jpeg, the largest shorter side; for raw, the side of the square; 0 = the size of the arrays."""
    quality: int = 90
    """JPEG quality, 1 to 100."""
    pixels: Literal["auto", "displayed", "stored"] = "auto"
    """Pixels of image files. displayed = as viewers show them: turned by their EXIF orientation, colours converted to
    sRGB by their ICC profile; stored = as in the file; auto = stored for ImageNet, displayed for all others."""
    shard_mb: int = 128
    """Target size of a shard, MiB."""
    min_shards: int = 4
    """Fewest shards of a split, so that several tasks can read a small one."""
    holdout: float = 0.1
    """Share of each class that becomes the test split if the source has no test split."""
    validation: float = 0.1
    """Share of each class's training images that becomes the validation split if the source has none; 0 = none. The
    split has at most 10,000 images; every class with three or more training images gives at least one."""
    max_bad_images: int = 0
    """Images that may be skipped because they do not decode, or because their row of a table has no file or no label;
    rejected.parquet lists them. One more stops prepare."""
    max_megapixels: int = MAX_MEGAPIXELS
    """Largest image, millions of pixels; larger images count as bad. Decoding needs 7 bytes per pixel, 0.7 GB for 100.
    The forms jpeg and raw decode a JPEG of more than 25 at reduced size; only they allow more than 100."""
    seed: int = 0
    """Seed that decides which images are held out and how samples are spread over the shards."""
    root: str = ""
    """Folder or s3://bucket/prefix in which a table's paths begin; "" = the table's folder, or, if all paths are
    absolute, their common folder."""
    path_column: str = ""
    """Column of a table that has the paths of the images; "" = guessed by name."""
    label_column: str = ""
    """Column of a table that has the labels, words or numbers; "" = guessed by name."""
    label_columns: tuple[str, ...] = ()
    """Columns of a table with 0 or 1, one for each class: multi-label. ["*"] = all columns that have no other use."""
    label_separator: str = ""
    """Text between the labels of one image, such as "|": multi-label; "" = the column has one label."""
    multi_label: bool = False
    """Rows of the same image are joined: it has the labels of all of them. Separator and 0/1 columns need no true."""
    split_column: str = ""
    """Column of a table with train, val or test; "" = guessed by name, "none" = the table has none."""
    group_column: str = ""
    """Column of a table, such as a patient: all images of one group are in the same split."""
    classes: tuple[str, ...] = ()
    """Class names in the wanted order; () = words in alphabetical order, numbers by value."""

    def __post_init__(self) -> None:
        forms = ("auto", "original", "jpeg", "raw")
        _require(self.form in forms, "form", f"must be one of {', '.join(forms)}", self.form)
        _require(self.size >= 0, "size", "must be at least 0", self.size)
        _require(self.size == 0 or self.form != "original", "size", 'must be 0 for form "original"', self.size)
        _require(self.size > 0 or self.form != "jpeg", "size", 'must be at least 1 for form "jpeg"', self.size)
        pixels = ("auto", "displayed", "stored")
        _require(self.pixels in pixels, "pixels", f"must be one of {', '.join(pixels)}", self.pixels)
        _require(1 <= self.quality <= _MAX_QUALITY, "quality", "must be in 1..100", self.quality)
        _require(self.shard_mb >= 1, "shard_mb", "must be at least 1", self.shard_mb)
        _require(self.min_shards >= 1, "min_shards", "must be at least 1", self.min_shards)
        _require(0 <= self.holdout < 1, "holdout", "must be in [0, 1)", self.holdout)
        _require(0 <= self.validation < 1, "validation", "must be in [0, 1)", self.validation)
        _require(self.max_bad_images >= 0, "max_bad_images", "must be at least 0", self.max_bad_images)
        _require(self.max_megapixels >= 1, "max_megapixels", "must be at least 1", self.max_megapixels)
        _require(self.seed >= 0, "seed", "must be at least 0", self.seed)
        alone = not self.label_columns or not (self.label_column or self.label_separator)
        _require(alone, "label_columns", "replaces prepare.label_column and label_separator", self.label_columns)
        _require(len(set(self.classes)) == len(self.classes), "classes", "must name each class once", self.classes)


def _require(condition: bool, field: str, what: str, value: object) -> None:
    if not condition:
        raise ValueError(f"prepare.{field} {what}, got {value!r}")
