"""Weights that a run starts from, `model.init_from`: a safetensors file or a run's folder, local or on S3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from infra.errors import UserError
from infra.storage import open_store
from pipelines.checkpoint import COMMIT, RunFolder, weights_file
from pipelines.config.paths import shown

if TYPE_CHECKING:
    from torch import Tensor

    from resnet_core.config import ModelConfig
    from resnet_core.models import ResNet

CONVERT = 'docs/recipes.md, "Weights from a .pth file"'
_WRAPPED = "module."  # prefix of every name that was saved from DistributedDataParallel
_HEAD = "fc.weight"
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_CONTENTS = {  # first bytes of other kinds of files
    **dict.fromkeys(
        _PICKLES,
        f"is a PyTorch pickle, which can run code when it is read: convert it once with the command in {CONVERT}, "
        "and name the safetensors file",
    ),
    b"version https://git-lfs": "is a pointer of Git LFS, not the file: run `git lfs pull`, or download the file",
    b"<": "is a web page, and not the file: download the file itself",
}


def start_uri(config: ModelConfig) -> str:
    """Return the URI of the weights of `model.init_from`, valid in every process; "" if the key is not set.

    For a run's folder they are the weights of its best checkpoint; for a checkpoint's folder, the weights in it.

    Raises:
        UserError: nothing is there, the folder has no checkpoint, or the checkpoints are damaged.
    """
    if not config.init_from:
        return ""
    folder, _, name = config.init_from.rstrip("/").rpartition("/")
    store = open_store(folder or ".")
    if store.exists(name):
        return f"{store.uri}/{name}"
    inside = store.sub(name)
    run = RunFolder(inside)
    if inside.exists(COMMIT):  # a checkpoint: two folders below its run
        above, _, step = inside.uri.rpartition("/checkpoints/step-")
        run, best = RunFolder(open_store(above)), RunFolder(open_store(above)).load(int(step))
    elif run.steps():
        faults: list[str] = []
        found = run.best(faults.append)
        if found is None:
            raise UserError(f"model.init_from: {faults[0]}")
        best = found
    elif inside.list():
        raise UserError(
            f"model.init_from: {shown(config.init_from)} is a folder without a checkpoint: name the folder of a run "
            "that has saved one, or a safetensors file"
        )
    else:
        raise UserError(f"model.init_from: there is no {shown(config.init_from)}")
    return f"{run.store.uri}/{weights_file(best)}"


def check_start(config: ModelConfig) -> None:
    """Raise UserError unless `model.init_from` fits the network. The driver calls this before the run begins."""
    from resnet_core.models import build_model

    load_start(build_model(config), config, start_uri(config))


def load_start(network: ResNet, config: ModelConfig, uri: str) -> None:
    """Load the weights at `uri` into a new network; their names are ours, torchvision's or timm's.

    Raises:
        UserError: the file is missing, is not a safetensors file, or does not fit the network.
    """
    import safetensors.torch

    from resnet_core.models import from_timm, load_weights

    folder, _, name = uri.rpartition("/")
    where = f"model.init_from: {shown(config.init_from)}"
    try:
        data = open_store(folder).read(name)
        tensors = from_timm(_unwrapped(safetensors.torch.load(data)))
        _check_head(tensors, config, where)
        load_weights(network, tensors, new_head=config.new_head)
    except FileNotFoundError as error:
        raise UserError(f"model.init_from: there is no {shown(config.init_from)}") from error
    except safetensors.SafetensorError as error:
        kind = next((text for begin, text in _CONTENTS.items() if data.lstrip().startswith(begin)), "")
        raise UserError(f"{where} {kind or f'is not a safetensors file: {error}'}") from error
    except ValueError as error:
        raise UserError(f"{where} does not fit {config.name}: {error}") from error


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    whole = all(name.startswith(_WRAPPED) for name in tensors)
    return {name.removeprefix(_WRAPPED) if whole else name: tensor for name, tensor in tensors.items()}


def _check_head(tensors: Mapping[str, Tensor], config: ModelConfig, where: str) -> None:
    """Raise UserError if the file's last layer is for other classes and `model.new_head` does not leave it out."""
    if config.new_head or _HEAD not in tensors or len(tensors[_HEAD]) == config.num_classes:
        return
    raise UserError(
        f"{where} was trained on {len(tensors[_HEAD])} classes, and the data set has {config.num_classes}: set "
        "model.new_head = true, which leaves the file's last layer out and trains a new one"
    )
