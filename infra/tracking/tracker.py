"""One MLflow run that records one training job; the job's driver owns it.

    tracker = Tracker.start(resolve_tracking(home), RunInfo(experiment="resnet", name="demo", run_id=None), warn=log)
    tracker.log(MetricPoint(step=100, time_ms=1_760_000_000_000, metrics={"train/loss": 0.7}))
    tracker.finish("FINISHED", timeout_s=60)

Training never waits for the tracker and never fails because of it. Records go to a queue, and one thread delivers them
in order, for as long as it takes. The steps of a key only grow: a point that was delivered, in this process or before a
restart, is skipped when it comes again. So the whole history in a checkpoint can be replayed at any time. The replay
fills gaps and creates no duplicates.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, Self

from infra.errors import UserError
from infra.storage import open_store
from infra.tracking.address import reason
from infra.tracking.client import Tracking, connect, one_line_errors, resolve_tracking
from infra.tracking.curves import CurveNames
from infra.tracking.metric_point import MetricPoint
from infra.tracking.run import RunInfo, open_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

__all__ = ["MetricPoint", "RunInfo", "Status", "Tracker", "Tracking", "resolve_tracking"]

_MAX_METRICS_PER_BATCH = 1000  # these two are MLflow's own limits
_MAX_DIGEST_CHARS = 36
_LONGEST_PAUSE_S = 30.0
_PAUSE_WHEN_FINISHING_S = 1.0
_DELIVERY_AFTER_FAILURE_S = 10.0
_DELIVERY_WHEN_KILLED_S = 1.0

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker:
    """A run in progress. Methods that queue something return at once, and they raise no error of MLflow."""

    def __init__(
        self,
        tracking: Tracking,
        client: MlflowClient,
        run_id: str,
        warn: Callable[[str], None],
        curves: CurveNames | None = None,
    ) -> None:
        """Take over an existing run; ``start`` can also create one."""
        run = client.get_run(run_id)
        self.run_id = run_id
        self.experiment_id: str = run.info.experiment_id
        self.tracking = tracking
        self._client = client
        self._warn = warn
        self._curves = curves or CurveNames()
        self._refused = ""  # reason of the last failed delivery
        self._last_step = {key: _last_step(client, run_id, key) for key in run.data.metrics}
        self._queue: deque[MetricPoint | Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._finishing = False
        self._thread = threading.Thread(target=self._deliver_all, name="mlflow-delivery", daemon=True)
        self._thread.start()

    @classmethod
    def start(cls, tracking: Tracking, info: RunInfo, *, warn: Callable[[str], None]) -> Self:
        """Create the run, or resume ``info.run_id``; ``warn`` gets one line when an outage begins and when it ends.

        Raises:
            UserError: MLflow is not reachable, refuses, or does not know the run.
        """
        client = connect(tracking)
        with one_line_errors(tracking):
            return cls(tracking, client, open_run(client, tracking, info), warn, info.curves)

    @property
    def pending(self) -> int:
        """Number of records and artifacts that MLflow does not have yet."""
        return len(self._queue)

    @property
    def ui_url(self) -> str:
        """URL of the run's page: on the server, or on the one that `make ui` starts."""
        return self.tracking.run_url(self.experiment_id, self.run_id)

    def log(self, record: MetricPoint) -> None:
        """Queue the finite values of ``record`` whose step is newer than this run's last step of the same key."""
        new = {
            key: float(value)
            for key, value in self._curves.of(record.metrics, self._last_step).items()
            if math.isfinite(value) and record.step > self._last_step.get(key, -1)
        }
        if new:
            self._last_step.update(dict.fromkeys(new, record.step))
            self._enqueue(MetricPoint(step=record.step, time_ms=record.time_ms, metrics=new))

    def text(self, name: str, text: str) -> None:
        """Queue a text artifact; ``name`` may contain folders ("recipe/resolved.toml")."""
        self.artifact(name, text.encode())

    def figure(self, name: str, figure: Figure) -> None:
        """Queue a figure as an image; ``name`` sets its format ("plots/loss.png"). The figure may change afterwards."""
        import io

        image = io.BytesIO()
        figure.savefig(image, format=PurePosixPath(name).suffix.lstrip("."))
        self.artifact(name, image.getvalue())

    def dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """Queue a link to a data set: its name, digest (MLflow keeps 36 characters), URI, and use by the run."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=digest[:_MAX_DIGEST_CHARS],
            source_type="s3" if open_store(source).is_remote else "local",
            source=json.dumps({"uri": source}),
        )
        link = DatasetInput(dataset=dataset, tags=[InputTag(key="mlflow.data.context", value=context)])
        self._enqueue(lambda: self._client.log_inputs(self.run_id, datasets=[link]))

    def tag(self, tags: Mapping[str, str]) -> None:
        """Queue tags, which replace tags of the same names."""

        def deliver() -> None:
            for key, value in tags.items():
                self._client.set_tag(self.run_id, key, value)

        self._enqueue(deliver)

    @contextmanager
    def finished_after(self, timeout_s: float) -> Iterator[None]:
        """Finish with the status that the block ends with: FINISHED, KILLED by Ctrl-C, or FAILED.

        Raises:
            UserError: the block succeeded, but the rest could not be delivered within ``timeout_s``.
        """
        status: Status = "FAILED"
        try:
            yield
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            delivered = self.finish(status, timeout_s if status == "FINISHED" else _DELIVERY_AFTER_FAILURE_S)
        if not delivered:
            raise self.away()

    def killed(self) -> None:
        """Set the status KILLED now, in case this process ends before it finishes the run; wait at most a second."""
        self._enqueue(lambda: self._client.set_terminated(self.run_id, "KILLED"))
        self.drain(_DELIVERY_WHEN_KILLED_S)

    def finish(self, status: Status, timeout_s: float) -> bool:
        """Deliver the rest, then set the run's status; return False if that takes longer than ``timeout_s``.

        The tracker accepts nothing after this call.
        """
        self._enqueue(lambda: self._client.set_terminated(self.run_id, status))
        with self._wake:
            self._finishing = True
            self._wake.notify()
        self._thread.join(timeout_s)
        return not self._queue

    def drain(self, timeout_s: float) -> bool:
        """Wait until MLflow has everything in the queue; return False if that takes longer than ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while self._queue and time.monotonic() < deadline:
            time.sleep(0.1)
        return not self._queue

    def away(self) -> UserError:
        """Return the error for a run whose rest could not be delivered."""
        why = f" ({self._refused})" if self._refused else ""
        return UserError(
            f"MLflow at {self.tracking.description} does not take the rest of this run{why}: "
            "rerun this command to upload it"
        )

    def artifact(self, name: str, data: bytes) -> None:
        """Queue a file."""
        path = PurePosixPath(name)

        def upload() -> None:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, path.name)
                file.write_bytes(data)
                parent = None if path.parent == PurePosixPath() else str(path.parent)
                self._client.log_artifact(self.run_id, str(file), parent)

        self._enqueue(upload)

    def _enqueue(self, item: MetricPoint | Callable[[], None]) -> None:
        with self._wake:
            self._queue.append(item)
            self._wake.notify()

    def _deliver_all(self) -> None:
        """Deliver the queue on the thread; an item stays in the queue until it is delivered."""
        failures = 0
        while self._wait_for_work():
            try:
                delivered = self._deliver_head()
            except Exception as error:  # any failure of a delivery is reported and retried
                failures += 1
                self._refused = reason(error)
                if failures == 1:
                    self._warn(
                        f"MLflow at {self.tracking.description} accepts no data at present ({self._refused}): "
                        "training continues, and the points are kept and delivered later"
                    )
                self._pause(failures)
                continue
            for _ in range(delivered):
                self._queue.popleft()
            if failures:
                failures = 0
                self._warn(f"MLflow at {self.tracking.description} is back: {self.pending} items left to deliver")

    def _wait_for_work(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._queue or self._finishing)
            return bool(self._queue)

    def _pause(self, failures: int) -> None:
        pause = random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE_S, 2.0 ** min(failures, 10))
        with self._wake:
            if not self._wake.wait_for(lambda: self._finishing, pause):
                return
        time.sleep(_PAUSE_WHEN_FINISHING_S)

    def _deliver_head(self) -> int:
        """Deliver the leading records as one batch, or the leading artifact; return the number of items."""
        head = self._queue[0]
        if not isinstance(head, MetricPoint):
            head()
            return 1
        from mlflow.entities import Metric

        with self._wake:  # a deque must not grow during iteration
            batch = _leading_records(self._queue)
        metrics = [
            Metric(key, value, record.time_ms, record.step) for record in batch for key, value in record.metrics.items()
        ]
        self._client.log_batch(self.run_id, metrics=metrics)
        return len(batch)


def _leading_records(items: Iterable[MetricPoint | Callable[[], None]]) -> list[MetricPoint]:
    """Return the records before the first artifact: as many as fit into one batch, and at least one."""
    batch: list[MetricPoint] = []
    remaining = _MAX_METRICS_PER_BATCH
    for record in takewhile(lambda item: isinstance(item, MetricPoint), items):
        assert isinstance(record, MetricPoint)
        remaining -= len(record.metrics)
        if batch and remaining < 0:
            break
        batch.append(record)
    return batch


def _last_step(client: MlflowClient, run_id: str, key: str) -> int:
    return max((point.step for point in client.get_metric_history(run_id, key)), default=-1)
