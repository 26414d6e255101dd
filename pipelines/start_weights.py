"""The weights that a run starts from, `model.init_from`: a safetensors file in a folder or on S3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.errors import UserError
from infra.storage import open_store
from pipelines.paths import shown

if TYPE_CHECKING:
    from resnet_core.config import ModelConfig
    from resnet_core.models import ResNet


def start_uri(config: ModelConfig) -> str:
    """Where `model.init_from` lies, valid in every process; "" if there is none."""
    if not config.init_from:
        return ""
    folder, _, name = config.init_from.rpartition("/")
    return f"{open_store(folder or '.').uri}/{name}"


def check_start(config: ModelConfig) -> None:
    """UserError unless `model.init_from` fits the network: told before a run has begun with it."""
    from resnet_core.models import build_model

    load_start(build_model(config), config, start_uri(config))


def load_start(network: ResNet, config: ModelConfig, uri: str) -> None:
    """Put the weights at `start_uri`, by our, torchvision's or timm's names, into a new network.

    Raises:
        UserError: the file is not there, is not one of safetensors, or does not fit the network.
    """
    import safetensors.torch

    from resnet_core.models import from_timm, load_weights

    folder, _, name = uri.rpartition("/")
    try:
        tensors = safetensors.torch.load(open_store(folder).read(name))
        load_weights(network, from_timm(tensors), new_head=config.new_head)
    except FileNotFoundError as error:
        raise UserError(f"model.init_from: there is no {shown(config.init_from)}") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"model.init_from: {shown(config.init_from)} is not a safetensors file: {error}") from error
    except ValueError as error:
        raise UserError(f"model.init_from: {shown(config.init_from)} does not fit {config.name}: {error}") from error
