"""What weights expect: the network, and the images that it was trained on; and how a recipe differs from that."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from infra.errors import UserError
from pipelines.config.recipe import Recipe
from resnet_core.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from resnet_core.config.variants import VARIANTS, Variant

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

_CLOSE = 1e-4  # between two spellings of one mean
_V2 = "resnetv2_"  # timm's networks with pre-activation
_ARCHITECTURE = ("block_order", "stem", "shortcut", "stride_on", "projection", "attention", "activation", "blur_pool")


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFacts:
    """Network and preprocessing of published weights. None, "" and 0 = not known."""

    network: str = ""  # a `model.name`
    variant: Variant | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int = 0  # of the training crops, pixels
    eval_resize: int = 0  # pixels
    interpolation: str = ""

    @classmethod
    def of_torchvision(cls, name: str, weights: WeightsEnum) -> Self:
        """Read the transforms that belong to torchvision's weights."""
        transforms = weights.transforms()
        (size,), (resize,) = transforms.crop_size, transforms.resize_size
        return cls(
            network=name,
            variant=VARIANTS[name],  # type: ignore[index]  # checked by the caller
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
            image_size=size,
            eval_resize=resize,
            interpolation=transforms.interpolation.value,
        )

    @classmethod
    def of_timm(cls, config: Mapping[str, Any]) -> Self:
        """Read timm's config.json, or one of another library, which may lack everything."""
        own = config.get("pretrained_cfg") if isinstance(config.get("pretrained_cfg"), Mapping) else {}
        assert own is not None
        architecture = str(config.get("architecture") or own.get("architecture") or "")
        network = f"resnet{architecture.removeprefix(_V2)}" if architecture.startswith(_V2) else architecture
        published = VARIANTS.get(network)  # type: ignore[call-overload]  # a name of timm's
        order = "pre" if architecture.startswith(_V2) else "post"
        size = int((own.get("input_size") or (3, 0, 0))[-1])
        crop = float(own.get("crop_pct") or 0)
        return cls(
            network=network if published else architecture,
            variant=_with_order(published, order) if published else None,
            mean=tuple(own["mean"]) if own.get("mean") else None,
            std=tuple(own["std"]) if own.get("std") else None,
            image_size=size,
            eval_resize=math.floor(size / crop) if crop else 0,
            interpolation=str(own.get("interpolation") or ""),
        )

    @classmethod
    def of_recipe(cls, flat: Mapping[str, Any]) -> Self:
        """Read the recipe of a checkpoint."""
        keys = {field.name for field in fields(ModelConfig)}
        section = {key.partition(".")[2]: value for key, value in flat.items() if key.startswith("model.")}
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in section.items() if key in keys
        }
        if "name" not in values:
            return cls()
        model = ModelConfig(**values)
        return cls(
            network=model.name,
            variant=None if flat.get("curriculum.model") else model.variant,  # it may not have grown yet
            mean=None if flat.get("augment.pixel_mean") else tuple(flat.get("augment.mean", IMAGENET_MEAN)),
            std=tuple(flat.get("augment.std", IMAGENET_STD)),
            image_size=flat.get("data.image_size", 0),
            eval_resize=flat.get("data.eval_resize", 0),
            interpolation=flat.get("data.interpolation", ""),
        )

    def check_network(self, config: ModelConfig, where: str) -> None:
        """Raise UserError if the weights belong to another network than the recipe's."""
        if self.variant is None:
            return
        wanted = config.variant
        if (wanted.block, wanted.depths, wanted.widths, wanted.groups, wanted.group_width) != (
            self.variant.block,
            self.variant.depths,
            self.variant.widths,
            self.variant.groups,
            self.variant.group_width,
        ):
            named = self.network if VARIANTS[self.network].depths == self.variant.depths else ""  # type: ignore[index]
            remedy = f"set model.name={named}" if named else f"set model.depths={list(self.variant.depths)}"
            raise UserError(f"{where} are weights of {self.network}, and model.name is {config.name}: {remedy}")
        for key in _ARCHITECTURE:
            theirs, ours = getattr(self.variant, key), getattr(wanted, key)
            if theirs != ours:
                raise UserError(
                    f"{where} are weights of {self.network} with {key} {theirs}, and the recipe has {ours}: "
                    f"set model.name={self.network} and model.{key}={theirs}"
                )

    def differences(self, recipe: Recipe) -> Iterator[tuple[str, Any, Any]]:
        """Yield (key, value of the weights, value of the recipe) where their preprocessing differs."""
        augment, data = recipe.augment, recipe.data
        if augment.pixel_mean and self.mean:
            yield "augment.pixel_mean", False, True
        elif self.mean and not _close(self.mean, augment.mean):
            yield "augment.mean", list(self.mean), list(augment.mean)
        if self.std and not _close(self.std, augment.std):
            yield "augment.std", list(self.std), list(augment.std)
        for key in ("image_size", "eval_resize", "interpolation"):
            theirs, ours = getattr(self, key), getattr(data, key)
            if theirs and theirs != ours:
                yield f"data.{key}", theirs, ours

    def to_json(self) -> dict[str, Any]:
        """Return the preprocessing and the network's name as JSON values."""
        names = ("network", "mean", "std", "image_size", "eval_resize", "interpolation")
        return {name: getattr(self, name) for name in names}


def warning_of(facts: WeightFacts, recipe: Recipe, where: str) -> str:
    """Return one line about preprocessing that differs from the weights', with the settings that remove it; or ""."""
    found = list(facts.differences(recipe))
    if not found:
        return ""
    theirs = ", ".join(f"{key} = {_text(value)}" for key, value, _ in found)
    ours = ", ".join(_text(value) for _, _, value in found)
    settings = " ".join(f"--set {key}={_text(value).replace(' ', '')}" for key, value, _ in found)
    return f"warning: {where} was trained with {theirs}; the recipe has {ours}. To use the weights' values: {settings}"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _close(some: tuple[float, ...], others: tuple[float, ...]) -> bool:
    return all(abs(one - other) < _CLOSE for one, other in zip(some, others, strict=True))


def _with_order(variant: Variant, order: Any) -> Variant:
    from dataclasses import replace

    return replace(variant, block_order=order)
