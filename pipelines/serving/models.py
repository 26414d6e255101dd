"""Where replicas get a registered model from: MLflow, or the command that serves.

`pipelines/serve.py` asks MLflow itself and shows its replicas what the URI names: on a cluster MLflow listens on the
head's loopback, and credentials stay with the command. Replicas that no command of ours has started (a `RayService`)
ask MLflow, which they must reach.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from infra.errors import UserError
from infra.mlflow_client import Tracking
from infra.registry import ModelFiles, Version, fetch, find

if TYPE_CHECKING:
    import ray
    from ray.actor import ActorHandle

_ANSWER_WITHIN_S = 30.0  # of an actor that only keeps a few bytes


class Models(Protocol):
    """What a URI names now."""

    def find(self) -> Version:
        """Return the version. Raises UserError where it cannot be found out."""

    def fetch(self, version: Version) -> ModelFiles:
        """Return the files of a version that `find` has returned. Raises UserError where they are not to be had."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FromMlflow:
    """Asks MLflow, from the process that needs the answer."""

    tracking: Tracking
    uri: str

    def find(self) -> Version:
        """Ask the registry."""
        return find(self.tracking, self.uri)

    def fetch(self, version: Version) -> ModelFiles:
        """Download the files, and compare them with the hashes in the version's tags."""
        return fetch(self.tracking, version.uri)


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """What the serving command shows its replicas."""

    version: Version
    files: tuple[ray.ObjectRef[ModelFiles]]  # in a tuple: Ray would replace a bare reference by what it stands for
    trouble: str = ""  # what keeps the command from knowing more


@dataclass(frozen=True, kw_only=True, slots=True)
class FromBoard:
    """Asks an actor that the serving command keeps up to date."""

    board: ActorHandle[Any]

    def find(self) -> Version:
        """Look at the board."""
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
            raise UserError(f"the command that serves does not answer, start it again: {_line(error)}") from error


class _Board:
    """Actor: keeps an offer."""

    def __init__(self, offer: Offer) -> None:
        self._offer = offer

    def show(self, offer: Offer) -> None:
        self._offer = offer

    def look(self) -> Offer:
        return self._offer


class Announcer:
    """Looks at the alias, in a thread of the serving command, and shows what it names on a board."""

    def __init__(self, models: FromMlflow, files: ModelFiles, poll_s: float) -> None:
        """Make the board, beside this process; `files` are what the URI names by now."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._models, self._poll_s = models, poll_s
        self._offer = Offer(version=files.version, files=(ray.put(files),))
        board: Any = ray.remote(num_cpus=0)(_Board)
        self._board: ActorHandle[Any] = board.options(scheduling_strategy=here).remote(self._offer)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="alias", daemon=True)

    @property
    def board(self) -> FromBoard:
        """What replicas are given."""
        return FromBoard(board=self._board)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join(timeout=self._poll_s)

    def look(self) -> None:
        """Ask MLflow once, and show what has changed: another version, or what keeps this one from being asked."""
        try:
            version = self._models.find()
            if version.number != self._offer.version.number:
                self._show(self._new(version))
            elif self._offer.trouble:
                self._show(Offer(version=self._offer.version, files=self._offer.files))
        except Exception as error:  # whatever is wrong with MLflow, the present version goes on answering
            trouble = str(error) or type(error).__name__
            if trouble != self._offer.trouble:
                self._show(Offer(version=self._offer.version, files=self._offer.files, trouble=trouble))

    def _follow(self) -> None:
        while not self._left.wait(self._poll_s):
            self.look()

    def _new(self, version: Version) -> Offer:
        import ray

        return Offer(version=version, files=(ray.put(self._models.fetch(version)),))

    def _show(self, offer: Offer) -> None:
        self._board.show.remote(offer)
        self._offer = offer


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
