"""Progress of prepare and predict, shown on the driver."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class PrepareBar(Progress):
    """Bar with images, images/s and the time left; if the output is not a terminal, a line per shard."""

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
        """Show rows done, rows in all, bytes written and seconds since this run's first row; callback of `prepare`."""
        if self.found is None:
            self.found = (done, size)
            self.reset(self.task)  # start the clock at the first shard, not while archives are listed
        if seconds:  # no rate before the first shard, while Ray starts its workers
            written, megabytes = done - self.found[0], (size - self.found[1]) / 1e6
            self.rate = f"{written / seconds:,.0f} images/s, {megabytes / seconds:.1f} MB/s"
        self.update(self.task, completed=done, total=total, rate=self.rate)
        if not self.console.is_terminal:
            line = f"{done:,} of {total:,} images, {size / 1e6:,.1f} MB"
            self.console.print(f"{line}, {self.rate}" if self.rate else line)


class PredictBar(Progress):
    """Bar with images, images/s and the time left; if the output is not a terminal, a line every ten seconds."""

    _PLAIN_EVERY_S = 10.0

    def __init__(self, console: Console, *, total: int, found: int) -> None:
        """Start a bar over `total` images, of which an earlier run has classified `found`."""
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
        """Return a line with the images classified by this run, and the rate."""
        now = self._done - self._found
        return f"classified {now:,} images, {now / (time.monotonic() - self._started):,.0f} images/s"

    def classified(self, images: int) -> None:
        """Count `images` more."""
        if self._done == self._found:
            self.reset(self._task, completed=self._done)  # the time left counts from here, not from the start of Ray
            self._printed = time.monotonic()
        self._done += images
        self.update(self._task, completed=self._done, rate=self.told.rpartition(", ")[2])
        if not self.console.is_terminal and time.monotonic() - self._printed > self._PLAIN_EVERY_S:
            self._printed = time.monotonic()
            self.console.print(self.told)
