"""A run's folder in object storage, and its checkpoints: safetensors and JSON, the list of hashes last.

    RUN/run.json                    the MLflow run, the recipe and the data set that the run began with
    RUN/checkpoints/step-00001234/  model, ema, optimizer, inputs, ledger, scored, records, recipe; then checkpoint.json
    RUN/finished.json               the result of the run, once it is done

`checkpoint.json` holds the sha256 of every other file, and its own. If it is missing, or a hash disagrees at a second
read too, the checkpoint is never loaded. The one before it is loaded instead.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from infra.retry import count_retry
from infra.storage import Store
from infra.tracking.metric_point import MetricPoint
from resnet_core.plateau import held_out

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
_OTHER = (LEDGER, SCORED, INPUTS)  # tensors outside the training state
_HEAD = ("step", "metrics", "recipe", "data_digest")  # of checkpoint.json, without the list of files
NEWEST_KEPT = 2  # the newest, and one to fall back on


class _DamagedError(UserError):
    """A file differs from the one that was saved."""


Warn = Callable[[str], None]
_Read = TypeVar("_Read")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A verified checkpoint, or one to be written: bytes by file name, parsed on access."""

    step: int
    metrics: Mapping[str, float]  # "validation/…" or "test/…" of the evaluation at this step; empty if there is none
    recipe: Mapping[str, Any]  # resolved, flat, `model.num_classes` filled in
    data_digest: str
    files: Mapping[str, bytes] = field(repr=False)

    @property
    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Tensors by group ("model", "optimizer" and, if averaged, "ema") and by name."""
        from safetensors.torch import load

        groups = [name for name in self.files if name.endswith(".safetensors") and name not in _OTHER]
        return {name.removesuffix(".safetensors"): load(self.files[name]) for name in groups}

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Weights to evaluate and to export: the averaged ones if there are any."""
        from safetensors.torch import load

        return load(self.files[self.weights_name])

    @property
    def weights_name(self) -> str:
        """Name of the file of `weights`."""
        return "ema.safetensors" if "ema.safetensors" in self.files else "model.safetensors"

    @property
    def ledger(self) -> dict[str, npt.NDArray[np.uint8]]:
        """Arrays of a `Ledger`."""
        from safetensors.numpy import load

        return load(self.files[LEDGER])

    @property
    def mean_image(self) -> npt.NDArray[np.float32] | None:
        """Mean image of the training split, H x W x 3 in [0, 1], if it is subtracted from the network's inputs."""
        from safetensors.numpy import load

        return load(self.files[INPUTS])[MEAN_IMAGE] if INPUTS in self.files else None

    @property
    def scored(self) -> dict[str, npt.NDArray[Any]] | None:
        """Details of the evaluation at this step: which classes are confused, and the most confident mistakes.

        See `pipelines.training.checkpoint_writer.details`.
        """
        from safetensors.numpy import load

        return load(self.files[SCORED]) if SCORED in self.files else None

    @property
    def records(self) -> list[MetricPoint]:
        """Points of the curves from the run's first step to this one."""
        return [MetricPoint.from_json(line) for line in self.files[RECORDS].decode().splitlines()]

    @property
    def sha256(self) -> str:
        """Hash of checkpoint.json, which identifies the whole checkpoint."""
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
        """Return a JSON object of the run, or None if the file is missing.

        Raises:
            UserError: the file is damaged, or lacks one of `keys`.
        """
        try:
            content = json.loads(self.store.read(name))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{self._damaged(name)}: {error}") from error
        if not isinstance(content, dict) or not content.keys() >= set(keys):
            raise UserError(f"{self._damaged(name)}: not a JSON object with {', '.join(keys)}")
        return content

    def _damaged(self, name: str) -> str:
        return f"{self.store.description}/{name} is damaged (delete it and run the same command again)"

    def write_json(self, name: str, content: Mapping[str, Any], *, if_absent: bool = False) -> None:
        self.store.write(name, json.dumps(dict(content), indent=1, sort_keys=True).encode(), if_absent=if_absent)

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, ascending."""
        pattern = re.compile(rf"{CHECKPOINTS}/step-(\d+)/{re.escape(COMMIT)}")
        return sorted(int(found[1]) for path, _ in self.store.list(CHECKPOINTS) if (found := pattern.fullmatch(path)))

    def load(self, step: int, only: Collection[str] | None = None) -> Checkpoint:
        """Read and verify one checkpoint.

        Args:
            step: step of the checkpoint.
            only: names of the files to read and verify; None = all.

        Raises:
            UserError: the checkpoint is missing or incomplete, or a file's hash disagrees.
        """
        try:
            head = _read_again(lambda: self._head(step))
            names = [name for name in head["files"] if only is None or name in only]
            files = {name: _read_again(partial(self._file, step, name, head)) for name in names}
        except FileNotFoundError as error:
            raise UserError(f"{self.store.description}: checkpoint of step {step} is missing or incomplete") from error
        return Checkpoint(**{key: head[key] for key in _HEAD}, files=files)

    def head(self, step: int) -> dict[str, Any] | None:
        """Return the content of checkpoint.json; None if it is damaged or missing. The other files are not read."""
        try:
            return _read_again(lambda: self._head(step))
        except (UserError, FileNotFoundError):
            return None

    def _head(self, step: int) -> dict[str, Any]:
        where, data = f"{self.store.description}/{_folder(step)}/{COMMIT}", self.store.read(f"{_folder(step)}/{COMMIT}")
        try:
            head: dict[str, Any] = json.loads(data)
            own = head.pop("sha256", None)  # absent in the first format
            complete = head.keys() == {*_HEAD, "files", "format_version"} and own in (None, _own_sha256(head))
            complete = complete and all(isinstance(each["sha256"], str) for each in head["files"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _DamagedError(f"{where} is damaged: {error}") from error
        if not complete:
            raise _DamagedError(f"{where} is not what was saved: its sha256 disagrees")
        return head

    def _file(self, step: int, name: str, head: Mapping[str, Any]) -> bytes:
        path = f"{_folder(step)}/{name}"
        data = self.store.read(path)
        if hashlib.sha256(data).hexdigest() != head["files"][name]["sha256"]:
            raise _DamagedError(f"{self.store.description}/{path} is not what was saved: its sha256 disagrees")
        return data

    def newest(self, warn: Warn, only: Collection[str] | None = None) -> Checkpoint | None:
        """Return the newest checkpoint whose files are undamaged (of `only`, see `load`); None if there is none.

        Damaged checkpoints are skipped with a warning.
        """
        return self._first_whole(reversed(self.steps()), warn, only)

    def best(self, warn: Warn) -> Checkpoint | None:
        """Return the best checkpoint by `run.metric`, the later one of equals; the newest if none was evaluated."""
        return self._first_whole([*self._by_metric(), *reversed(self.steps())], warn)

    def write(self, checkpoint: Checkpoint, *, keep_best: int) -> None:
        """Commit a checkpoint, then remove those that are neither new nor among the best."""
        folder = _folder(checkpoint.step)
        for name, data in checkpoint.files.items():
            self.store.write(f"{folder}/{name}", data)
        self.store.write(f"{folder}/{COMMIT}", checkpoint.commit())
        kept = {*self.steps()[-NEWEST_KEPT:], *self._by_metric()[:keep_best]}
        for step in self.steps():
            if step not in kept:
                self._drop(step)

    def _by_metric(self) -> list[int]:
        """Return the steps of the evaluated checkpoints, best first; the newest one's recipe names the metric."""
        heads = {step: head for step in self.steps() if (head := self.head(step))}
        metric = heads[max(heads)]["recipe"].get("run.metric", "accuracy") if heads else ""
        scored = []
        for step, head in heads.items():
            value = held_out(head["metrics"], metric)
            if value is not None:
                scored.append((value, step))
        return [step for _, step in sorted(scored, reverse=True)]

    def _drop(self, step: int) -> None:
        """Remove a checkpoint. Its `checkpoint.json` goes first, so a partial one is never committed."""
        head = self.head(step)
        for name in (COMMIT, *(head["files"] if head else ())):
            self.store.delete(f"{_folder(step)}/{name}")

    def _first_whole(self, steps: Iterable[int], warn: Warn, only: Collection[str] | None = None) -> Checkpoint | None:
        for step in steps:
            try:
                return self.load(step, only)
            except UserError as error:
                warn(f"{error}; falling back to the checkpoint before")
        return None


def _read_again(read: Callable[[], _Read]) -> _Read:
    """Read, a second time if what was read is damaged: the damage may come from the transfer."""
    try:
        return read()
    except _DamagedError:
        count_retry()
        return read()


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(content), sort_keys=True, indent=1).encode()


def _own_sha256(content: Mapping[str, Any]) -> str:
    """Return the hash of checkpoint.json without its own "sha256"."""
    return hashlib.sha256(_json(content)).hexdigest()


def weights_file(checkpoint: Checkpoint) -> str:
    """Return the path of a checkpoint's `weights` in its run's folder."""
    return f"{_folder(checkpoint.step)}/{checkpoint.weights_name}"


def _folder(step: int) -> str:
    return f"{CHECKPOINTS}/step-{step:08d}"
