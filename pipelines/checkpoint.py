"""A run's folder in object storage, and its checkpoints: safetensors and JSON, the list of hashes last.

    RUN/run.json                    the MLflow run, the recipe and the data set that the run began with
    RUN/checkpoints/step-00001234/  model, ema, optimizer, inputs, ledger, scored, records, recipe; then checkpoint.json
    RUN/finished.json               the run is done: what came of it

`checkpoint.json` holds the sha256 of every other file, and its own. A checkpoint without it, or that disagrees with
it also when read again, is never loaded; the one before is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from infra.patience import count_retry
from infra.records import Record
from infra.storage import Store
from resnet_core.reaction import held_out

if TYPE_CHECKING:
    import torch

CHECKPOINTS = "checkpoints"
COMMIT = "checkpoint.json"
RECORDS = "records.jsonl"
LEDGER = "ledger.safetensors"
SCORED = "scored.safetensors"
INPUTS = "inputs.safetensors"
MEAN_IMAGE = "mean_image"
RUN = "run.json"
FINISHED = "finished.json"
_OTHER = (LEDGER, SCORED, INPUTS)  # tensors that are no part of the training state
_HEAD = ("step", "metrics", "recipe", "data_digest")  # of checkpoint.json, beside the list of files
NEWEST_KEPT = 2  # the newest, and the one to fall back on


class _DamagedError(UserError):
    """What was read is not what was saved."""


Warn = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A verified checkpoint, or one about to be written: bytes by file name, parsed where they are asked for."""

    step: int
    metrics: Mapping[str, float]  # "validation/…" or "test/…" of the evaluation at this step; empty without one
    recipe: Mapping[str, Any]  # resolved, flat, `model.num_classes` filled in
    data_digest: str
    files: Mapping[str, bytes] = field(repr=False)

    @property
    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """ "model", "optimizer" and, if averaged, "ema", by tensor name."""
        from safetensors.torch import load

        groups = [name for name in self.files if name.endswith(".safetensors") and name not in _OTHER]
        return {name.removesuffix(".safetensors"): load(self.files[name]) for name in groups}

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The weights to evaluate and to ship: the averaged ones where there are any."""
        from safetensors.torch import load

        return load(self.files[self.weights_name])

    @property
    def weights_name(self) -> str:
        """The file of `weights`."""
        return "ema.safetensors" if "ema.safetensors" in self.files else "model.safetensors"

    @property
    def ledger(self) -> dict[str, npt.NDArray[np.uint8]]:
        """Arrays of a `Ledger`."""
        from safetensors.numpy import load

        return load(self.files[LEDGER])

    @property
    def mean_image(self) -> npt.NDArray[np.float32] | None:
        """Of the training split, H x W x 3 in [0, 1], if the network's inputs are taken from it."""
        from safetensors.numpy import load

        return load(self.files[INPUTS])[MEAN_IMAGE] if INPUTS in self.files else None

    @property
    def scored(self) -> dict[str, npt.NDArray[Any]] | None:
        """The evaluation at this step in detail: which classes are confused, and the most confident mistakes.

        See `pipelines.sink.details`.
        """
        from safetensors.numpy import load

        return load(self.files[SCORED]) if SCORED in self.files else None

    @property
    def records(self) -> list[Record]:
        """Everything recorded from the run's first step to this one."""
        return [Record.from_json(line) for line in self.files[RECORDS].decode().splitlines()]

    @property
    def sha256(self) -> str:
        """Of the list of hashes: names the whole checkpoint."""
        return hashlib.sha256(self.commit()).hexdigest()

    def commit(self) -> bytes:
        """Content of checkpoint.json."""
        listed = {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in sorted(self.files.items())
        }
        head = {"format_version": 1, "step": self.step, "metrics": dict(self.metrics), "data_digest": self.data_digest}
        content = {**head, "recipe": dict(self.recipe), "files": listed}
        return _json({**content, "sha256": _own_sha256(content)})


class RunFolder:
    """One run in object storage."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def read_json(self, name: str, *keys: str) -> dict[str, Any] | None:
        """A JSON object of the run that has these keys, or None where there is none yet; UserError if it is damaged."""
        try:
            content = json.loads(self.store.read(name))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{self._damaged(name)}: {error}") from error
        if not isinstance(content, dict) or not content.keys() >= set(keys):
            raise UserError(f"{self._damaged(name)}: no JSON object of {', '.join(keys)}")
        return content

    def _damaged(self, name: str) -> str:
        return f"{self.store.description}/{name} is damaged (delete it and run the same command again)"

    def write_json(self, name: str, content: Mapping[str, Any], *, if_absent: bool = False) -> None:
        self.store.write(name, json.dumps(dict(content), indent=1, sort_keys=True).encode(), if_absent=if_absent)

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, ascending."""
        pattern = re.compile(rf"{CHECKPOINTS}/step-(\d+)/{re.escape(COMMIT)}")
        return sorted(int(found[1]) for path, _ in self.store.list(CHECKPOINTS) if (found := pattern.fullmatch(path)))

    def load(self, step: int) -> Checkpoint:
        """Read and verify one checkpoint.

        Raises:
            UserError: it is not there, incomplete, or a file's hash disagrees.
        """
        try:
            try:
                return self._load(step)
            except _DamagedError:
                count_retry()
                return self._load(step)  # it may have been the transfer
        except FileNotFoundError as error:
            raise UserError(f"{self.store.description}: checkpoint of step {step} is missing or incomplete") from error

    def _load(self, step: int) -> Checkpoint:
        folder = f"{self.store.description}/{_folder(step)}"
        try:
            head = json.loads(self.store.read(f"{_folder(step)}/{COMMIT}"))
            files = {name: self.store.read(f"{_folder(step)}/{name}") for name in head["files"]}
            checkpoint = Checkpoint(**{key: head[key] for key in _HEAD}, files=files)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _DamagedError(f"{folder}/{COMMIT} is damaged: {error}") from error
        own = head.pop("sha256", None)  # the first checkpoints had none
        if head.keys() != {*_HEAD, "files", "format_version"} or (own and own != _own_sha256(head)):
            raise _DamagedError(f"{folder}/{COMMIT} is not what was saved: its sha256 disagrees")
        for name, data in files.items():
            if hashlib.sha256(data).hexdigest() != head["files"][name]["sha256"]:
                raise _DamagedError(f"{folder}/{name} is not what was saved: its sha256 disagrees")
        return checkpoint

    def head(self, step: int) -> dict[str, Any] | None:
        """What checkpoint.json says of a checkpoint, whose files are not verified; None where it is damaged or gone."""
        try:
            return self.read_json(f"{_folder(step)}/{COMMIT}", *_HEAD, "files")
        except UserError:
            return None

    def newest(self, warn: Warn) -> Checkpoint | None:
        """The newest checkpoint that is whole; one that is damaged is told of and passed over."""
        return self._first_whole(reversed(self.steps()), warn)

    def best(self, warn: Warn) -> Checkpoint | None:
        """The most accurate checkpoint, the later of equals; the newest if none was evaluated."""
        return self._first_whole([*self._by_accuracy(), *reversed(self.steps())], warn)

    def write(self, checkpoint: Checkpoint, *, keep_best: int) -> None:
        """Commit a checkpoint, then drop those that are neither new nor among the best."""
        folder = _folder(checkpoint.step)
        for name, data in checkpoint.files.items():
            self.store.write(f"{folder}/{name}", data)
        self.store.write(f"{folder}/{COMMIT}", checkpoint.commit())
        kept = {*self.steps()[-NEWEST_KEPT:], *self._by_accuracy()[:keep_best]}
        for step in self.steps():
            if step not in kept:
                self._drop(step)

    def _by_accuracy(self) -> list[int]:
        scored = []
        for step in self.steps():
            head = self.head(step)
            accuracy = held_out(head["metrics"], "accuracy") if head else None
            if accuracy is not None:
                scored.append((accuracy, step))
        return [step for _, step in sorted(scored, reverse=True)]

    def _drop(self, step: int) -> None:
        """Remove a checkpoint, its commit first, so that it is never half there."""
        head = self.head(step)
        for name in (COMMIT, *(head["files"] if head else ())):
            self.store.delete(f"{_folder(step)}/{name}")

    def _first_whole(self, steps: Any, warn: Warn) -> Checkpoint | None:
        for step in steps:
            try:
                return self.load(step)
            except UserError as error:
                warn(f"{error}; going back to the checkpoint before")
        return None


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(content), sort_keys=True, indent=1).encode()


def _own_sha256(content: Mapping[str, Any]) -> str:
    """Of checkpoint.json without the line that holds it."""
    return hashlib.sha256(_json(content)).hexdigest()


def weights_file(checkpoint: Checkpoint) -> str:
    """Where a checkpoint's `weights` lie in its run's folder."""
    return f"{_folder(checkpoint.step)}/{checkpoint.weights_name}"


def _folder(step: int) -> str:
    return f"{CHECKPOINTS}/step-{step:08d}"
