"""Progress of long work: how much, how fast, how long still."""

from __future__ import annotations

import os

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(**options) -> Progress:
    """Text, bar, count, rate, time left and a note; silent on all ranks but the first of a distributed run."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        disable=os.environ.get("RANK", "0") != "0",
        **options,
    )


class Rate(TextColumn):
    """Steps per second."""

    def __init__(self):
        super().__init__("")

    def render(self, task):
        return f"{task.speed:.3g}/s" if task.speed else ""
