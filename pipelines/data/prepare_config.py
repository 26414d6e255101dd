"""The section `prepare` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.data.decode import MAX_PIXELS, MEGAPIXEL

MAX_MEGAPIXELS = MAX_PIXELS // MEGAPIXEL
"""What training, evaluation and predict decode at most (`pipelines.data.decode`)."""
_MAX_QUALITY = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """How a source becomes shards."""

    form: Literal["auto", "original", "jpeg", "raw"] = "auto"
    """Stored form; auto = the original bytes of image files, raw pixels of arrays."""
    size: int = 0
    """Pixels of the shorter side at most, for jpeg; side, for raw; 0 = the size that arrays have."""
    quality: int = 90
    """Quality of jpeg, 1 to 100."""
    shard_mb: int = 128
    """Wanted size of a shard, MiB."""
    min_shards: int = 4
    """Shards of a small split, so that several tasks can read it."""
    holdout: float = 0.1
    """Share of each class that becomes the test split where a source has none of its own."""
    validation: float = 0.1
    """Share of each class's training images that becomes the validation split, at most 10,000 images in all, where the
    source has none of its own; 0 = none. Every class with three or more training images gives at least one."""
    max_bad_images: int = 0
    """Images that may be left out because they do not decode; each is named in rejected.parquet. More stop prepare."""
    max_megapixels: int = MAX_MEGAPIXELS
    """Millions of pixels that an image may have; images of more count as bad. 7 bytes of memory a pixel are needed for
    a moment, 0.7 GB for 100; jpeg and raw: a JPEG of more than 25 is decoded at reduced size. More than 100 are for
    these two forms alone."""
    seed: int = 0
    """Decides which images are held out and how samples are spread over the shards."""

    def __post_init__(self) -> None:
        forms = ("auto", "original", "jpeg", "raw")
        _require(self.form in forms, "form", f"must be one of {', '.join(forms)}", self.form)
        _require(self.size >= 0, "size", "must be at least 0", self.size)
        _require(self.size == 0 or self.form != "original", "size", 'must be 0 for form "original"', self.size)
        _require(self.size > 0 or self.form != "jpeg", "size", 'must be at least 1 for form "jpeg"', self.size)
        _require(1 <= self.quality <= _MAX_QUALITY, "quality", "must be in 1..100", self.quality)
        _require(self.shard_mb >= 1, "shard_mb", "must be at least 1", self.shard_mb)
        _require(self.min_shards >= 1, "min_shards", "must be at least 1", self.min_shards)
        _require(0 <= self.holdout < 1, "holdout", "must be in [0, 1)", self.holdout)
        _require(0 <= self.validation < 1, "validation", "must be in [0, 1)", self.validation)
        _require(self.max_bad_images >= 0, "max_bad_images", "must be at least 0", self.max_bad_images)
        _require(self.max_megapixels >= 1, "max_megapixels", "must be at least 1", self.max_megapixels)
        _require(self.seed >= 0, "seed", "must be at least 0", self.seed)


def _require(condition: bool, field: str, what: str, value: object) -> None:
    if not condition:
        raise ValueError(f"prepare.{field} {what}, got {value!r}")
