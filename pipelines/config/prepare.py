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
    """Images that may be skipped because they do not decode; rejected.parquet lists them. One more stops prepare."""
    max_megapixels: int = MAX_MEGAPIXELS
    """Largest image, millions of pixels; larger images count as bad. Decoding needs 7 bytes per pixel, 0.7 GB for 100.
    The forms jpeg and raw decode a JPEG of more than 25 at reduced size; only they allow more than 100."""
    seed: int = 0
    """Seed that decides which images are held out and how samples are spread over the shards."""

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


def _require(condition: bool, field: str, what: str, value: object) -> None:
    if not condition:
        raise ValueError(f"prepare.{field} {what}, got {value!r}")
