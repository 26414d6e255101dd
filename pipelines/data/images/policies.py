"""Augmentation policies: random changes of a training crop, by torchvision's operations on Pillow images.

This is the only part of the data path that imports torch. A task imports it only if the recipe names a policy. Draws
come from the sample's own random stream, so they depend on (seed, epoch, sample id) alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from pipelines.config.crop import MOST_MAGNITUDE, CropConfig
from resnet_core.config import IMAGENET_MEAN

Pixels = npt.NDArray[np.uint8]
Change = Callable[[Image.Image, np.random.Generator], Image.Image]

_APPLIED = 0.5  # probability that a drawn operation of RandAugment is applied, as in timm
_FILL = [float(round(255 * mean)) for mean in IMAGENET_MEAN]  # RGB of pixels that a geometric operation leaves empty
_INTERPOLATION = InterpolationMode.BICUBIC
_SOLARIZE_ABOVE = 128
_BLUR_RADIUS = (0.1, 2.0)  # pixels

# Argument at level 1: degrees, slopes, fractions of a side. The sign is random.
_SIGNED = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 0.45, "TranslateY": 0.45}
# (largest argument, whether the change grows with it). Arguments: bits kept, threshold, added value.
_STEPPED = {"Posterize": (4, False), "Solarize": (256, False), "SolarizeAdd": (110, True)}
_ENHANCE = {"Color", "Contrast", "Brightness", "Sharpness"}


def build_policy(crop: CropConfig) -> Callable[[Pixels, np.random.Generator], Pixels]:
    """Return the function that applies `crop.policy` to a crop, uint8 SxSx3."""
    changes: dict[str, Callable[[], Change]] = {
        "trivial_augment_wide": trivial_augment_wide,
        "rand_augment": lambda: rand_augment(crop),
        "three_augment": lambda: three_augment,
    }
    change = changes[crop.policy]()

    def apply(pixels: Pixels, rng: np.random.Generator) -> Pixels:
        return np.asarray(change(Image.fromarray(pixels), rng))

    return apply


def trivial_augment_wide() -> Change:
    """Return torchvision's TrivialAugmentWide with its default settings (bilinear, black); Müller and Hutter 2021."""
    transform = v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)

    def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        with torch.random.fork_rng(devices=[]):  # the transform draws from torch's global generator only
            torch.default_generator.manual_seed(int(rng.integers(2**63)))
            changed: Image.Image = transform(image)
        return changed

    return change


def three_augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Apply one of greyscale, solarization and Gaussian blur; Touvron et al. 2022 (DeiT III), section 3.1.

    The blur is Pillow's, as in DeiT's code: torchvision's blur needs a kernel size, which DeiT does not define.
    """
    chosen = int(rng.integers(3))
    if chosen == 0:
        grey: Image.Image = F.rgb_to_grayscale(image, num_output_channels=3)
        return grey
    if chosen == 1:
        solarized: Image.Image = F.solarize(image, _SOLARIZE_ABOVE)
        return solarized
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(*_BLUR_RADIUS)))


def rand_augment(crop: CropConfig) -> Change:
    """Return RandAugment (Cubuk et al. 2020) as in timm: `rand-m<magnitude>-n<ops>-mstd<std>-inc<increasing>`.

    This is timm's version because the recipes that use RandAugment are timm's. torchvision's version has no standard
    deviation, no probability below 1, no Invert and no SolarizeAdd. Its magnitudes go to 30: 3 of them are 1 here.
    Interpolation is bicubic. Empty pixels get ImageNet's mean colour.
    """

    def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        for name in (NAMES[index] for index in rng.integers(len(NAMES), size=crop.policy_ops)):
            if rng.random() < _APPLIED:
                strength = rng.normal(crop.policy_magnitude, crop.policy_magnitude_std) / MOST_MAGNITUDE
                level, sign = min(1.0, max(0.0, strength)), 1.0 if rng.random() < 1 / 2 else -1.0
                image = operate(image, name, argument(name, level, sign, increasing=crop.policy_increasing))
        return image

    return change


def argument(name: str, level: float, sign: float, *, increasing: bool) -> float:
    """Return the argument of an operation for a level in [0, 1] and a sign of -1 or 1."""
    if name in _SIGNED:
        return sign * level * _SIGNED[name]
    if name in _ENHANCE:
        return max(0.1, 1 + sign * 0.9 * level) if increasing else 0.1 + 1.8 * level
    if name in _STEPPED:
        most, grows = _STEPPED[name]
        return most - int(level * most) if increasing and not grows else int(level * most)
    return 0.0


def operate(image: Image.Image, name: str, value: float) -> Image.Image:
    """Apply one operation. `value` comes from `argument`."""
    changed: Image.Image = _OPERATIONS[name](image, value)
    return changed


def _affine(
    image: Image.Image, *, shift: tuple[float, float] = (0.0, 0.0), slope: tuple[float, float] = (0.0, 0.0)
) -> Image.Image:
    """Shift to the left and up by fractions of the sides, or shear about the upper left corner."""
    moved: Image.Image = F.affine(
        image,
        angle=0.0,
        translate=[-shift[0] * image.width, -shift[1] * image.height],
        scale=1.0,
        shear=[math.degrees(math.atan(each)) for each in slope],
        interpolation=_INTERPOLATION,
        fill=_FILL,
        center=[0.0, 0.0],
    )
    return moved


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    if bits < 1:  # timm's scale reaches 0 bits, which Pillow refuses
        return Image.new("RGB", image.size)
    posterized: Image.Image = F.posterize(image, int(bits))
    return posterized


def _solarize_add(image: Image.Image, added: float) -> Image.Image:
    table = [min(255, value + int(added)) if value < _SOLARIZE_ABOVE else value for value in range(256)]
    return image.point(3 * table)


_OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "AutoContrast": lambda image, _: F.autocontrast(image),
    "Equalize": lambda image, _: F.equalize(image),
    "Invert": lambda image, _: F.invert(image),
    "Rotate": lambda image, degrees: F.rotate(image, degrees, interpolation=_INTERPOLATION, fill=_FILL),
    "Posterize": _posterize,
    "Solarize": F.solarize,
    "SolarizeAdd": _solarize_add,
    "Color": F.adjust_saturation,
    "Contrast": F.adjust_contrast,
    "Brightness": F.adjust_brightness,
    "Sharpness": F.adjust_sharpness,
    "ShearX": lambda image, slope: _affine(image, slope=(slope, 0.0)),
    "ShearY": lambda image, slope: _affine(image, slope=(0.0, slope)),
    "TranslateX": lambda image, fraction: _affine(image, shift=(fraction, 0.0)),
    "TranslateY": lambda image, fraction: _affine(image, shift=(0.0, fraction)),
}
NAMES = tuple(_OPERATIONS)
"""RandAugment's operations, all with the same probability."""
