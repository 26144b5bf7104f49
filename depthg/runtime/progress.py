"""Progress bars: count, rate and time left."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from depthg.runtime.processes import is_main


class ProgressBar:
    """The progress bar of one stage: count, rate, time left and a note; silent on all ranks but the first.

    Args:
        text: description of the work.
        total: number of items.
    """

    def __init__(self, text: str, total: int):
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"), disable=not is_main(),
        )  # fmt: skip
        self._task = self._bar.add_task(f"{text:<29}", total=total, note="")

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *error) -> None:
        self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """Work that this process has done."""
        self._bar.advance(self._task, count)

    def skip(self, count: int) -> None:
        """Work that was done before or elsewhere: counted, but not in the rate."""
        self._bar.tasks[0].completed += count

    def note(self, text: str) -> None:
        if text != self._bar.tasks[0].fields["note"]:
            self._bar.update(self._task, note=text)


class Rate(TextColumn):
    """Work per second; ``unit`` is written behind the number."""

    def __init__(self, unit: str = ""):
        super().__init__("")
        self.unit = unit

    def render(self, task):
        return f"{task.speed:.3g}{self.unit}/s" if task.speed else ""


def training_bar(console: Console) -> Progress:
    """Progress with the loss, iterations per second and the time left; silent where the console is."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"),
        Rate(" it"), TimeRemainingColumn(), console=console, disable=console.quiet,
    )  # fmt: skip
