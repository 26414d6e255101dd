"""Sources that give replicas a registered model: MLflow, or the command `serve.py`.

`pipelines/serve.py` asks MLflow itself, and publishes the version that the URI names to its replicas. On a cluster,
MLflow listens on the head's loopback address, and credentials stay with the command. Replicas that `serve.py` has not
started (a `RayService`) ask MLflow themselves, so they must be able to reach it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from infra.errors import UserError
from infra.registry.versions import ModelFiles, Version, fetch, find
from infra.tracking.client import Tracking

if TYPE_CHECKING:
    import ray
    from ray.actor import ActorHandle

_ANSWER_WITHIN_S = 30.0  # for an actor that only keeps a few bytes


class Models(Protocol):
    """Source of the version that a URI names now."""

    def find(self) -> Version:
        """Return the version. Raises UserError if it cannot be determined."""

    def fetch(self, version: Version) -> ModelFiles:
        """Return the files of a version that `find` has returned. Raises UserError if they are not available."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FromMlflow:
    """Source that asks MLflow, from the process that needs the model."""

    tracking: Tracking
    uri: str

    def find(self) -> Version:
        """Look up the version in the registry."""
        return find(self.tracking, self.uri)

    def fetch(self, version: Version) -> ModelFiles:
        """Download the files, and compare them with the hashes in the version's tags."""
        return fetch(self.tracking, version.uri)


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """Version and files that `serve.py` publishes to its replicas."""

    version: Version
    files: tuple[ray.ObjectRef[ModelFiles]]  # in a tuple: Ray would replace a bare reference by its value
    trouble: str = ""  # reason why a newer version cannot be published


@dataclass(frozen=True, kw_only=True, slots=True)
class FromBoard:
    """Source that asks an actor, which `serve.py` keeps up to date."""

    board: ActorHandle[Any]

    def find(self) -> Version:
        """Return the published version. Raises UserError if `serve.py` reports a problem or does not answer."""
        offer = self._look()
        if offer.trouble:
            raise UserError(offer.trouble)
        return offer.version

    def fetch(self, version: Version) -> ModelFiles:
        """Take the files from Ray's object store."""
        import ray

        offer = self._look()
        if offer.version.number != version.number:
            raise UserError(f"{version.uri} has been replaced by {offer.version.uri} meanwhile")
        try:
            return ray.get(offer.files[0])
        except ray.exceptions.RayError as error:
            raise UserError(f"the files of {version.uri} are lost with a node: {_line(error)}") from error

    def _look(self) -> Offer:
        import ray

        try:
            reference: ray.ObjectRef[Offer] = self.board.look.remote()
            return ray.get(reference, timeout=_ANSWER_WITHIN_S)
        except ray.exceptions.RayError as error:
            raise UserError(f"serve.py does not answer its replicas, start it again: {_line(error)}") from error


class _Board:
    """Actor that keeps the current offer."""

    def __init__(self, offer: Offer) -> None:
        self._offer = offer

    def show(self, offer: Offer) -> None:
        self._offer = offer

    def look(self) -> Offer:
        return self._offer


class Announcer:
    """Thread of `serve.py` that follows the alias, and publishes the version that the alias names."""

    def __init__(self, models: FromMlflow, files: ModelFiles, poll_s: float) -> None:
        """Start the actor on the node of this process. `files` are those of the version that the URI names now."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._models, self._poll_s = models, poll_s
        self._offer = Offer(version=files.version, files=(ray.put(files),))
        board: Any = ray.remote(num_cpus=0)(_Board)
        self._board: ActorHandle[Any] = board.options(scheduling_strategy=here).remote(self._offer)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="alias", daemon=True)

    @property
    def board(self) -> FromBoard:
        """Source for the replicas."""
        return FromBoard(board=self._board)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(timeout=self._poll_s)

    def look(self) -> None:
        """Ask MLflow once, and publish a change: another version, or the reason why it cannot be published."""
        try:
            version = self._models.find()
            if version.number != self._offer.version.number:
                self._show(self._new(version))
            elif self._offer.trouble:
                self._show(Offer(version=self._offer.version, files=self._offer.files))
        except Exception as error:  # for any error, the current version continues to answer
            trouble = str(error) or type(error).__name__
            if trouble != self._offer.trouble:
                self._show(Offer(version=self._offer.version, files=self._offer.files, trouble=trouble))

    def _follow(self) -> None:
        while not self._stopped.wait(self._poll_s):
            self.look()

    def _new(self, version: Version) -> Offer:
        import ray

        return Offer(version=version, files=(ray.put(self._models.fetch(version)),))

    def _show(self, offer: Offer) -> None:
        self._board.show.remote(offer)
        self._offer = offer


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
