"""How prepare and predict show their progress on the driver."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class PrepareBar(Progress):
    """Images, images/s and the time left; where the output is no terminal, a line per shard."""

    def __init__(self, console: Console) -> None:
        count = TextColumn("{task.completed:,} of {task.total:,} images")
        rate = TextColumn("{task.fields[rate]}")
        super().__init__(
            count, BarColumn(), rate, TimeRemainingColumn(), console=console, disable=not console.is_terminal
        )
        self.task = self.add_task("prepare", rate="")
        self.found: tuple[int, int] | None = None  # images and bytes that an earlier run had written
        self.rate = ""

    def show(self, done: int, total: int, size: int, seconds: float) -> None:
        """Rows done, rows in all, bytes written, seconds since this run's first row: the callback of `prepare`."""
        if self.found is None:
            self.found = (done, size)
            self.reset(self.task)  # the clock starts when the shards do, not while archives are listed
        if seconds:  # before the first shard there is no rate: until then Ray starts its workers
            written, megabytes = done - self.found[0], (size - self.found[1]) / 1e6
            self.rate = f"{written / seconds:,.0f} images/s, {megabytes / seconds:.1f} MB/s"
        self.update(self.task, completed=done, total=total, rate=self.rate)
        if not self.console.is_terminal:
            told = f"{done:,} of {total:,} images, {size / 1e6:,.1f} MB"
            self.console.print(f"{told}, {self.rate}" if self.rate else told)


class PredictBar(Progress):
    """Images, images/s and the time left; where the output is no terminal, a line now and then."""

    _PLAIN_EVERY_S = 10.0

    def __init__(self, console: Console, *, total: int, found: int) -> None:
        """`found`: images that an earlier run has classified."""
        count = TextColumn("{task.completed:,} of {task.total:,} images")
        rate = TextColumn("{task.fields[rate]}")
        super().__init__(
            count, BarColumn(), rate, TimeRemainingColumn(), console=console, disable=not console.is_terminal
        )
        self._found, self._done = found, found
        self._started = self._printed = time.monotonic()
        self._task = self.add_task("predict", total=total, completed=found, rate="")

    @property
    def told(self) -> str:
        """What was done, and how fast, in a line."""
        now = self._done - self._found
        return f"classified {now:,} images, {now / (time.monotonic() - self._started):,.0f} images/s"

    def classified(self, images: int) -> None:
        """That many more."""
        if self._done == self._found:
            self.reset(self._task, completed=self._done)  # time left counts from here, not from the start of Ray
            self._printed = time.monotonic()
        self._done += images
        self.update(self._task, completed=self._done, rate=self.told.rpartition(", ")[2])
        if not self.console.is_terminal and time.monotonic() - self._printed > self._PLAIN_EVERY_S:
            self._printed = time.monotonic()
            self.console.print(self.told)
