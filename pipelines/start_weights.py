"""The weights that a run starts from, `model.init_from`: a safetensors file in a folder or on S3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.errors import UserError
from infra.storage import Store, open_store

if TYPE_CHECKING:
    from resnet_core.config import ModelConfig
    from resnet_core.models import ResNet


def check_start(config: ModelConfig) -> None:
    """UserError where the recipe names a file that is not there: told before a run has begun with it."""
    if config.init_from:
        store, name = _locate(config.init_from)
        if not store.exists(name):
            raise _missing(config.init_from)


def load_start(network: ResNet, config: ModelConfig) -> None:
    """Put the weights, by our, torchvision's or timm's names, into a new network.

    Raises:
        UserError: the file is not there, is not one of safetensors, or does not fit the network.
    """
    import safetensors.torch

    from resnet_core.models import from_timm, load_weights

    store, name = _locate(config.init_from)
    try:
        tensors = safetensors.torch.load(store.read(name))
        load_weights(network, from_timm(tensors), new_head=config.new_head)
    except FileNotFoundError as error:
        raise _missing(config.init_from) from error
    except safetensors.SafetensorError as error:
        raise UserError(f"model.init_from: {config.init_from} is not a safetensors file: {error}") from error
    except ValueError as error:
        raise UserError(f"model.init_from: {config.init_from} does not fit {config.name}: {error}") from error


def _locate(uri: str) -> tuple[Store, str]:
    folder, _, name = uri.rpartition("/")
    return open_store(folder or "."), name


def _missing(uri: str) -> UserError:
    return UserError(f"model.init_from: there is no {uri}")
