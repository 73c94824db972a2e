"""How far a screening is: a bar in a terminal, else a line every ten seconds, on stderr."""

from __future__ import annotations

import time
from typing import Any

BAR_AFTER_S, LINE_EVERY_S = 2.0, 10.0


class Progress:
    """How many are done, how many a second, time left, failures. A context, entered once."""

    def __init__(self, doing: str, what: str, total: int, done: int, quiet: bool) -> None:
        from rich.console import Console

        self.doing, self.what = doing, what
        self.total, self.done, self.before, self.failed = total, done, done, 0
        self.started = self.last = time.monotonic()
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.bar: Any = None

    def __enter__(self) -> Progress:
        if self.done:
            self.say(f"carrying on: {self.done:,} of {self.total:,} {self.what} are there already")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def say(self, words: str) -> None:
        self.console.print(words, markup=False, soft_wrap=True)

    def advance(self, records: int, failed: int) -> None:
        self.done, self.failed = self.done + records, self.failed + failed
        now = time.monotonic()
        if not self.console.is_terminal:
            if now - self.last >= LINE_EVERY_S:
                self.last = now
                self.say(self.line())
        elif self.bar is not None or now - self.started >= BAR_AFTER_S:
            self._draw()

    def line(self) -> str:
        rate, left_s = self.rate()
        return (
            f"{self.doing}: {self.done:,} of {self.total:,} {self.what}, {rate:.1f} a second, "
            f"{_clock(left_s)} left, {self.failed:,} failed"
        )

    def rate(self) -> tuple[float, float]:
        """Records a second of this run, and the seconds left at that rate."""
        rate = (self.done - self.before) / max(time.monotonic() - self.started, 1e-6)
        return rate, (self.total - self.done) / max(rate, 1e-6)

    def _draw(self) -> None:
        rate, left_s = self.rate()
        if self.bar is None:
            self.bar = _bar(self.console, self.doing, self.total)
            self.bar.start()
        fields = {"rate": f"{rate:.1f} a second", "left": f"{_clock(left_s)} left"}
        fields |= {"failed": f"{self.failed:,} failed"}
        self.bar.update(self.bar.task_ids[0], completed=self.done, **fields)


def _bar(console: Any, doing: str, total: int) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    fields = ("{task.fields[rate]}", "{task.fields[left]}", "{task.fields[failed]}")
    first, *rest = map(TextColumn, ("{task.description}", *fields))
    bar = Bar(first, BarColumn(), MofNCompleteColumn(), *rest, console=console, transient=True)
    bar.add_task(doing, total=total, rate="", left="", failed="")
    return bar


def _clock(seconds: float) -> str:
    """
    >>> _clock(7), _clock(75), _clock(7384)
    ('0:07', '1:15', '2:03:04')
    """
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
