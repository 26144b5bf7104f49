"""Reproduces a table of the paper: trains its rows over seeds and compares them with the paper's numbers."""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from depthg.config.composing import check_overrides, load_config
from depthg.config.schema import Config, nearest
from depthg.data import check_root
from depthg.paper.runs import Job, check_folder, commands, result_of, run_job
from depthg.paper.tables import CHECKPOINTS, PaperTable, Row, csv_text, markdown, paper_tables
from depthg.runtime import command
from depthg.storage.outputs import output_folder
from depthg.storage.whole_files import write_text

TABLES = ("table1", "table2", "table3", "table4")
CHOSEN_HERE = ("name", "runs_dir", "resume", "overwrite", "seed", "checkpoint.rule")


def choose_table(name: str, overrides: Sequence[str]) -> PaperTable:
    """Returns a table by name; for ``table4`` with ``data=...`` the ablation on that data.

    Raises:
        ValueError: an unknown table, or ``data=...`` for a table with a fixed data set.
    """
    if name not in TABLES:
        raise ValueError(f"unknown table {name!r}; choose one of {', '.join(TABLES)}{nearest(name, TABLES)}")
    data = data_of(overrides)
    if data and name != "table4":
        title = paper_tables()[name].title
        raise ValueError(f"{name} is about {title}, so data={data} does not fit; table4 takes any data")
    return paper_tables()["ablation" if data else name]


def data_of(overrides: Sequence[str]) -> str | None:
    given = [value for key, _, value in (text.partition("=") for text in overrides) if key in ("data", "data.name")]
    return given[-1] if given else None


def choose_rows(table: PaperTable, names: Sequence[str]) -> list[Row]:
    """Rows of a table that can be run: all, or those in ``names``.

    Raises:
        ValueError: an unknown row.
    """
    rows = {row.row: row for row in table.rows if row.experiment or table.name == "ablation"}
    unknown = [name for name in names if name not in rows]
    if unknown:
        raise ValueError(
            f"unknown row {unknown[0]!r}; rows of this table: {', '.join(rows)}{nearest(unknown[0], rows)}"
        )
    return [row for name, row in rows.items() if not names or name in names]


def settings_of(table: PaperTable, row: Row, overrides: Sequence[str]) -> tuple[str, ...]:
    """All settings of a row's run: those of the experiment, the table, the user and the row, in this order."""
    base = table.experiments.get(data_of(overrides) or "", table.experiments.get("default", ()))
    if row.experiment:
        base = (f"experiment={row.experiment}",)
    if any(text.startswith("experiment=") for text in overrides):
        base = tuple(text for text in base if not text.startswith("experiment="))
    return (*base, *table.settings, *overrides, *row.settings)


def plan(
    table: PaperTable,
    rows: Sequence[Row],
    overrides: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    protocol: str,
    split: str | None,
) -> list[Job]:
    """Jobs of all rows and seeds, after checking the settings of every row.

    Raises:
        ValueError: settings that this command chooses itself, invalid settings, or rows that need depth and have none.
    """
    for text in overrides:
        key = text.partition("=")[0]
        if key in CHOSEN_HERE or (key == "experiment" and table.name != "ablation"):
            option = {"seed": "use --seeds", "name": "use --out", "runs_dir": "use --out"}.get(key, "leave it out")
            raise ValueError(f"{key} is chosen by this command for every run; {option}")
    check_overrides(overrides)
    jobs, backbones = [], set()
    for row in rows:
        settings = settings_of(table, row, overrides)
        config = load_config(settings)
        check_row(row, config)
        backbones.add(config.backbone.name)
        jobs += row_jobs(table, row, config, settings, seeds, out, protocol, split)
    if len(backbones) > 1 and any(text.startswith("backbone.weights=") for text in overrides):
        raise ValueError(
            f"backbone.weights is for one network, the rows need {', '.join(sorted(backbones))}; pass --rows"
        )
    return jobs


def row_jobs(
    table: PaperTable,
    row: Row,
    config: Config,
    settings: tuple[str, ...],
    seeds: Sequence[int],
    out: Path,
    protocol: str,
    split: str | None,
) -> list[Job]:
    """One job per seed; scores both checkpoints if the training run evaluates regularly, and not on the test split."""
    both = bool(config.val.every and config.iterations and config.data.eval_split != "test")
    kmeans = row.read_out.startswith("kmeans") or any(metric.startswith("kmeans") for metric in table.metrics)
    if row.read_out != "cluster" and protocol == "flip-crf":
        protocol = "flip"  # the CRF refines probes only
    split = split or config.data.eval_split
    size = "x".join(map(str, config.data.eval_size))
    measured = protocol == "plain" and split == config.data.eval_split
    return [
        Job(
            row.row, seed, out / f"{row.row}-seed{seed}", (*settings, f"checkpoint.rule={'both' if both else 'last'}"),
            CHECKPOINTS if both else CHECKPOINTS[:1], protocol,
            "" if measured else f"{config.data.name}-{split}-{size}", split, kmeans,
        )
        for seed in seeds
    ]  # fmt: skip


def check_row(row: Row, config: Config) -> None:
    """Raises ValueError if a row needs depth and there is none."""
    about_depth = not (row.row.startswith(("stego", "dino")))
    if about_depth and config.depth.source == "none":
        raise ValueError(
            f"the row {row.row} needs depth; pass depth.source=dataset, folder, model or ground_plane (or --rows stego)"
        )


def default_out(name: str, overrides: Sequence[str]) -> Path:
    mode = [text.partition("=")[2] for text in overrides if text.startswith("mode=")] or ["paper"]
    return Path("runs") / "-".join(filter(None, (name, data_of(overrides), mode[-1])))


def split_arguments(seeds: Sequence[str], overrides: Sequence[str]) -> tuple[list[int], list[str]]:
    """Parses seeds to numbers and moves settings that followed ``--seeds`` to the overrides.

    Raises:
        ValueError: a seed is not a whole number, or there is none.
    """
    listed = [part for text in seeds if "=" not in text for part in text.split(",") if part]
    if not all(re.fullmatch(r"\d+", part) for part in listed) or not listed:
        raise ValueError(f"--seeds {' '.join(seeds)}: whole numbers from 0 on are needed, as in --seeds 0 1 2")
    return list(dict.fromkeys(map(int, listed))), [*overrides, *(text for text in seeds if "=" in text)]


def run_all(jobs: Sequence[Job], overwrite: bool, console: Console) -> None:
    """Runs the jobs one after the other; a failure is printed and recorded, and the next job runs."""
    for number, job in enumerate(jobs, 1):
        if not commands(job, overwrite):
            console.print(f"[{number}/{len(jobs)}] {job.row}, seed {job.seed}: finished before", markup=False)
            continue
        console.print(f"[{number}/{len(jobs)}] {job.row}, seed {job.seed}", style="bold", markup=False)
        error = run_job(job, overwrite)
        if error:
            console.print(f"failed: {error}; going on", style="bold red", markup=False)


def write_tables(out: Path, table: PaperTable, jobs: Sequence[Job], name: str, command: str) -> tuple[str, bool]:
    """Writes ``NAME.md`` and ``NAME.csv`` from all finished jobs; returns the Markdown and True if none failed."""
    results = [result_of(job) for job in jobs]
    text = markdown(table, results, command)
    write_text(out / f"{name}.md", text)
    write_text(out / f"{name}.csv", csv_text(table, results))
    return text, not any(result.error for result in results)


def reproduce(options: argparse.Namespace, line: str) -> bool:
    """Runs the command with parsed ``options`` (``line``: the command as typed); True if every run succeeded."""
    seeds, overrides = split_arguments(options.seeds, options.overrides)
    launcher = next((text for text in overrides if text.lstrip("+~").startswith("hydra")), None)
    if launcher is not None:
        raise ValueError(f"{launcher} is for Hydra's launchers: use python -m depthg.train --multirun with the rows")
    table = choose_table(options.table, overrides)
    protocol = options.protocol or ("plain" if table.name == "ablation" else "flip-crf")
    out = (options.out or default_out(options.table, overrides)).expanduser().resolve()
    jobs = plan(table, choose_rows(table, options.rows), overrides, seeds, out, protocol, options.split)
    console = command.console()
    if options.dry_run:
        for job in jobs:
            for words in commands(job, options.overwrite):
                console.print(" ".join(["python", *words[1:]]), markup=False, highlight=False, soft_wrap=True)
        return True
    data = load_config(jobs[0].settings).data  # all rows of a table have one data set
    check_root(data.name, data.root)
    if protocol == "flip-crf" and importlib.util.find_spec("pydensecrf") is None:
        raise ImportError("the paper's numbers are measured with a CRF; install pydensecrf2, or pass --protocol flip")
    for job in jobs:
        check_folder(job, options.overwrite)
    output_folder(out)
    run_all(jobs, options.overwrite, console)
    text, good = write_tables(out, table, jobs, options.table, line)
    console.print(f"\n{text}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"written: {out / options.table}.md and .csv", highlight=False, soft_wrap=True)
    return good
