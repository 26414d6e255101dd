"""Deep residual learning in torch: models, schedules, training step and loop, exact evaluation. No Ray, no I/O.

    from resnet_core import resnet50
    model = resnet50(num_classes=10)

Every published network is a function here (docs/core.md). Importing this package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from resnet_core.config.variants import VARIANTS

_MODELS = "resnet_core.models"
_NAMES = (
    *("ResNet", "build_model", "feature_channels", "load_weights"),
    *("from_timm", "to_timm", "from_torchvision", "to_torchvision"),
)
__all__ = ["ModelConfig", *_NAMES, *VARIANTS]


def __getattr__(name: str) -> Any:
    if name in VARIANTS:
        found = import_module(_MODELS).builder(name)
    elif name in _NAMES:
        found = getattr(import_module(_MODELS), name)
    elif name == "ModelConfig":
        found = import_module("resnet_core.config").ModelConfig
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
