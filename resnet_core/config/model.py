"""Section `model` of a recipe: the network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from resnet_core.config.check import require, require_choice
from resnet_core.config.variants import (
    VARIANTS,
    ActivationKind,
    AttentionKind,
    BlockOrder,
    CifarName,
    ModelName,
    Projection,
    ShortcutOption,
    Stem,
    StrideOn,
    Variant,
)

Family = Literal["imagenet", "cifar"]
DropPathShape = Literal["linear", "uniform"]
FrozenTo = Literal["", "stem", "layer1", "layer2", "layer3", "layer4"]
"""Last part of a network that does not train; "" = all parts train."""
Location = str
"""A path or URI; a relative path becomes absolute when the recipe is read."""
Published = Literal[""]
"""Keep the value of the published network."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Network: a published name, and the keys that change it; `variants.py` has the sources of the names.

    "" keeps the value of the published network.
    """

    name: ModelName = "resnet20"
    """Name of a published network, such as resnet50; resnet_core/config/variants.py has the sources."""
    num_classes: int = 0
    """Outputs of the last layer; 0 = the number of classes of the data set (filled in by the pipeline)."""
    depths: tuple[int, ...] = ()
    """Blocks per stage, such as [n, n, n] for the paper's 6n + 2 layers; [] = those of the published network."""
    in_channels: int = 3
    """Channels of the images; 3, because data sets store RGB."""
    init_from: Location = ""
    """Weights to start from: torchvision://NAME/WEIGHTS, hf://OWNER/NAME, a URL, a .safetensors or .pth file, a run's
    folder or models:/NAME@champion (docs/fine-tuning.md). Set `new_head` if the classes differ."""
    multi_label: bool = False
    """Set by the command: whether an image of the data set has any number of classes (docs/multi-label.md)."""
    new_head: bool = False
    """Train a new last layer instead of the one in `init_from`: for other classes."""
    freeze: FrozenTo = ""
    """Last part that keeps the weights of `init_from`, counted from the stem: layer2 = stem, layer1 and layer2 do not
    train and their norms keep their statistics. The last stage = only the last layer trains; "" = all parts train."""
    zero_init_last: bool = False
    """Start every residual branch at zero, by a zero scale in its last norm (Goyal et al. 2017, Section 5.1)."""
    prior_bias: bool = False
    """Start the last layer's biases at -log(num_classes), which suits a loss with one sigmoid per class (Composer)."""
    shortcut: Literal[Published, ShortcutOption] = ""
    """Shortcut where the shape changes: A = zero padding, B = projection, C = projection in every block (Section
    4.1)."""
    stride_on: Literal[Published, StrideOn] = ""
    """Convolution of a bottleneck that halves the image: 1x1 = the paper's (v1), 3x3 = torchvision's (v1.5)."""
    block_order: Literal[Published, BlockOrder] = ""
    """Order inside a block: pre = norm and activation before each convolution (v2, He et al. 2016)."""
    stem: Literal[Published, Stem] = ""
    """First layers: deep = three 3x3 convolutions (ResNet-C and -D); cifar = one 3x3 at full size, no pooling."""
    projection: Literal[Published, Projection] = ""
    """Step of a shortcut that halves the image: conv = the projection's stride, avgpool = average pooling before the
    projection (ResNet-D)."""
    attention: Literal[Published, AttentionKind] = ""
    """Attention at the end of every residual branch; SE and CBAM reduce the channels to 1/16, in ResNet-RS to 1/4."""
    activation: ActivationKind = "relu"
    """Activation function of the whole network."""
    blur_pool: bool = False
    """Blur the input of convolutions of stride two (Zhang 2019), in the same places as FFCV's ImageNet recipe."""
    output_stride: int = 32
    """Most pixels of an image's side per position of the last features: 8, 16 or 32. Later strides become dilation
    with the same weights, for segmentation (Chen et al. 2017, arXiv 1706.05587, Section 3.1)."""
    drop_path: float = 0.0
    """Stochastic depth: the highest probability that a branch is dropped for an image (Huang et al. 2016)."""
    drop_path_shape: DropPathShape = "linear"
    """Stochastic depth per block: linear = grows up to `drop_path` at the last block; uniform = `drop_path` in every
    block."""
    dropout: float = 0.0
    """Probability that a feature is dropped before the last layer."""
    activation_checkpointing: bool = False
    """Recompute activations inside blocks in the backward pass instead of keeping them: less memory, more time."""

    def __post_init__(self) -> None:
        require_choice("model.name", self.name, ModelName)
        require(self.num_classes >= 0, "model.num_classes", "at least 0", self.num_classes)
        require(not self.new_head or bool(self.init_from), "model.new_head", "false without init_from", self.new_head)
        self._check_freeze()
        require(self.in_channels >= 1, "model.in_channels", "at least 1", self.in_channels)
        require_choice("model.activation", self.activation, ActivationKind)
        require_choice("model.drop_path_shape", self.drop_path_shape, DropPathShape)
        require(self.output_stride in _OUTPUT_STRIDES, "model.output_stride", "8, 16 or 32", self.output_stride)
        for field, choices in _OVERRIDES.items():
            if getattr(self, field):
                require_choice(f"model.{field}", getattr(self, field), choices)
        require(0 <= self.drop_path < 1, "model.drop_path", "in [0, 1)", self.drop_path)
        require(0 <= self.dropout < 1, "model.dropout", "in [0, 1)", self.dropout)
        self._check_that_overrides_apply()

    @property
    def family(self) -> Family:
        """Return which of the paper's two designs this is: four stages for ImageNet, or three narrow ones for CIFAR."""
        return "cifar" if self.name in get_args(CifarName) else "imagenet"

    @property
    def variant(self) -> Variant:
        """Return the published network with this section's changes."""
        changes: dict[str, Any] = {field: value for field in _OVERRIDES if (value := getattr(self, field))}
        if self.depths:
            changes["depths"] = self.depths
        if self.stem == "cifar":
            changes["stem_pool"] = "none"
        elif self.stem and VARIANTS[self.name].stem_pool == "none":
            changes["stem_pool"] = "max"
        return replace(
            VARIANTS[self.name],
            **changes,
            activation=self.activation,
            blur_pool=self.blur_pool,
            output_stride=self.output_stride,
            in_channels=self.in_channels,
        )

    def _check_freeze(self) -> None:
        require_choice("model.freeze", self.freeze, FrozenTo)
        stages = [f"layer{number + 1}" for number in range(len(VARIANTS[self.name].depths))]
        fits = self.freeze in ("", "stem", *stages)
        require(fits, "model.freeze", f"one of stem, {', '.join(stages)} for {self.name}", self.freeze)
        started = bool(self.init_from) or not self.freeze
        require(started, "model.freeze", '"" without init_from, or random weights would stay random', self.freeze)

    def _check_that_overrides_apply(self) -> None:
        """Raise ValueError for a key that has no effect on this network: the user meant something else."""
        variant = self.variant
        stages = len(VARIANTS[self.name].depths)
        fits = len(self.depths) in (0, stages) and all(depth >= 1 for depth in self.depths)
        require(fits, "model.depths", f"empty or {stages} positive numbers", self.depths)
        plain = VARIANTS[self.name].shortcut == "none"
        require(not (plain and self.shortcut), "model.shortcut", '"" for a plain network', self.shortcut)
        require(not (plain and self.drop_path), "model.drop_path", "0 for a plain network", self.drop_path)
        require(
            not self.stride_on or variant.block == "bottleneck",
            "model.stride_on",
            '"" for a network of basic blocks',
            self.stride_on,
        )
        require(
            not self.projection or variant.shortcut in ("B", "C"),
            "model.projection",
            f'"" with shortcut {variant.shortcut}, which has no projections',
            self.projection,
        )
        undilated = replace(variant, output_stride=_OUTPUT_STRIDES[-1]).stride
        fits = self.output_stride == _OUTPUT_STRIDES[-1] or self.output_stride < undilated
        rule = f"{_OUTPUT_STRIDES[-1]} for a network whose last features are {undilated} times smaller than the image"
        require(fits, "model.output_stride", rule, self.output_stride)


_OUTPUT_STRIDES = (8, 16, 32)
_OVERRIDES = {
    "shortcut": ShortcutOption,
    "stride_on": StrideOn,
    "block_order": BlockOrder,
    "stem": Stem,
    "projection": Projection,
    "attention": AttentionKind,
}
