"""Text of the command ``depthg.prepare``: its help, and the table of caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Column, Table

from depthg.storage.cache import folder_bytes

SUMMARY = """Computes the fixed inputs of training: depth, labels, features of the frozen backbone, neighbours.
Takes the settings of depthg.train, which does the same when something is missing:
python -m depthg.prepare experiment=camvid data.root=CAMVID

Results are kept in cache.dir (default: $DEPTHG_CACHE, else the user cache folder), never in the data. A result is
reused until something it depends on changes: photos (names, sizes, times), crops, resolution, backbone and weights,
precision, mode. A stopped or killed run goes on where it was. Several processes share the work, also on several
machines with one cache.dir: start the command several times, or with torchrun. features.cache=off keeps no features
(half a million crops with ViT-S/8 take 300 GB) and runs the backbone in every training step instead.

Below: the keys that matter here. Others are accepted too, so a command line of depthg.train works unchanged."""

PARTS = (
    "experiment", "mode", "seed", "device", "data.", "backbone.", "features.", "depth.", "loss.depth.relation", "knn.",
    "head.dropout", "cache.",
)  # fmt: skip


@dataclass(frozen=True)
class CacheUse:
    """A cache that was made or found, for the summary."""

    name: str
    count: int  # views
    bytes: int
    seconds: float
    made: bool  # False: found
    folder: Path


def print_summary(stages: Sequence[CacheUse], root: Path, console: Console) -> None:
    """Prints the caches that were made or found: views, bytes, seconds and folder."""
    right = (Column(name, justify="right") for name in ("views", "on disk", "seconds"))
    table = Table("stage", "", *right, "folder", box=None, pad_edge=False)
    for stage in stages:
        state, seconds = ("made", f"{stage.seconds:.1f}") if stage.made else ("found", "")
        where = escape(str(stage.folder.relative_to(root)))
        table.add_row(stage.name, state, f"{stage.count:,}", decimal(stage.bytes), seconds, where)
    total, seconds = (sum(getattr(stage, name) for stage in stages) for name in ("bytes", "seconds"))
    table.add_row("total", "", "", decimal(total), f"{seconds:.1f}", f"in {escape(str(root))}", style="bold")
    console.print(table)
    left = [folder for folder in root.glob("*/.*.partial") if folder.is_dir()]
    if left:
        size = decimal(sum(map(folder_bytes, left)))
        console.print(
            f"unfinished, stopped or still being made with other settings: {len(left)} folders, {size}, in "
            f"{escape(str(root))}/*/.*.partial. The same settings finish them; unneeded ones can be deleted.",
            highlight=False,
        )
