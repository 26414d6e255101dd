"""The weights that a run starts from, `model.init_from`: a safetensors file or a run's folder, here or on S3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from infra.errors import UserError
from infra.storage import open_store
from pipelines.checkpoint import COMMIT, RunFolder, weights_file
from pipelines.paths import shown

if TYPE_CHECKING:
    from torch import Tensor

    from resnet_core.config import ModelConfig
    from resnet_core.models import ResNet

CONVERT = 'docs/recipes.md, "Weights from a .pth file"'
_WRAPPED = "module."  # in front of every name that was saved from DistributedDataParallel
_HEAD = "fc.weight"
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_CONTENTS = {  # what a file of another kind begins with
    **dict.fromkeys(
        _PICKLES,
        f"is a PyTorch pickle, which can run code when it is read: convert it once by the command in {CONVERT}, and "
        "name the safetensors file",
    ),
    b"version https://git-lfs": "is a pointer of Git LFS, and not the file: run `git lfs pull`, or download the file",
    b"<": "is a web page, and not the file: download the file itself",
}


def start_uri(config: ModelConfig) -> str:
    """Return where the file of `model.init_from` lies, valid in every process; "" if there is none.

    Of a run's folder it is the file of weights in the best checkpoint, of a checkpoint's folder the one there.

    Raises:
        UserError: it is not there, is a folder without a checkpoint, or its checkpoints are damaged.
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
    """Raise UserError unless `model.init_from` fits the network: told before a run has begun with it."""
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
    where = f"model.init_from: {shown(config.init_from)}"
    try:
        data = open_store(folder).read(name)
        tensors = from_timm(_unwrapped(safetensors.torch.load(data)))
        _check_head(tensors, config, where)
        load_weights(network, tensors, new_head=config.new_head)
    except FileNotFoundError as error:
        raise UserError(f"model.init_from: there is no {shown(config.init_from)}") from error
    except safetensors.SafetensorError as error:
        kind = next((told for begin, told in _CONTENTS.items() if data.lstrip().startswith(begin)), "")
        raise UserError(f"{where} {kind or f'is not a safetensors file: {error}'}") from error
    except ValueError as error:
        raise UserError(f"{where} does not fit {config.name}: {error}") from error


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    whole = all(name.startswith(_WRAPPED) for name in tensors)
    return {name.removeprefix(_WRAPPED) if whole else name: tensor for name, tensor in tensors.items()}


def _check_head(tensors: Mapping[str, Tensor], config: ModelConfig, where: str) -> None:
    """Raise UserError where the last layer is for other classes, and is not to be left out."""
    if config.new_head or _HEAD not in tensors or len(tensors[_HEAD]) == config.num_classes:
        return
    raise UserError(
        f"{where} was trained on {len(tensors[_HEAD])} classes, and the data set has {config.num_classes}: set "
        "model.new_head = true, which leaves the file's last layer out and trains a new one"
    )
