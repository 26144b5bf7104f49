"""Runs commands that take settings: ``key=value`` arguments, ``--help`` for every key, and Hydra's flags."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import hydra
from hydra.core.config_store import ConfigStore
from rich.markup import escape
from rich.table import Table

from depthg.config.composing import check_overrides, group_choices, load_config, quote_text, to_config, with_preset
from depthg.config.schema import GROUPS, Config, options
from depthg.runtime import command as runtime

COMMON = (  # keys that most people need, first in the help
    "data.root", "n_classes", "name", "overwrite", "iterations", "batch_size", "seed", "data.size", "depth.source",
    "device",
)  # fmt: skip


def print_help(command: str, summary: str, overrides: Sequence[str] = (), parts: Sequence[str] = ()) -> None:
    """Prints usage, presets, and the keys (all, or those that start with one of ``parts``) with their values.

    The values are those under ``overrides``, e.g. a preset.
    """
    values = options(load_config(overrides))
    values = {key: value for key, value in values.items() if not parts or key.startswith(tuple(parts))}
    console = runtime.console()
    console.print(f"[bold]python -m {command} \\[key=value ...][/bold]\n\n{summary}\n", highlight=False)
    for group in GROUPS:
        console.print(f"  {group}={'|'.join(group_choices(group))}", highlight=False)
    console.print("\n  --multirun with key=a,b,c sweeps; --cfg job prints the composed settings as YAML")
    console.print("  --help with presets (--help experiment=camvid) shows their values\n")
    if not parts:
        console.print("[bold]Keys to know[/bold]")
        console.print(_key_table({key: values[key] for key in COMMON}))
        console.print("\n[bold]All keys[/bold]")
    console.print(_key_table(values))


def _key_table(values: Mapping[str, tuple]) -> Table:
    """Keys with their values and meanings; ``values`` as :func:`depthg.config.schema.options` returns them."""
    table = Table("key", "value", "meaning", box=None, pad_edge=False)
    for key, (item, value) in values.items():
        text, choices = (
            item.metadata.get("help") or f"{item.name} of this term (lambda, b)",
            item.metadata.get("choices"),
        )
        if choices and not all(choice in text for choice in choices):
            text += f" ({' | '.join(choices)})"
        table.add_row(key, "none" if value is None else escape(str(value)), escape(text))
    return table


def run_command(task: Callable[[Config], object], command: str, summary: str, parts: Sequence[str] = ()) -> None:
    """Parses ``sys.argv``, composes and checks the settings, and runs ``task``.

    A user error prints one line and exits with status 1.

    ``parts``: prefixes of the keys that the help shows; empty: all keys.
    """
    arguments = sys.argv[1:]
    try:
        if {"-h", "--help"} & set(arguments):
            given = [argument for argument in arguments if not argument.startswith("-")]
            print_help(command, summary, given, parts)
        elif any(argument.startswith("-") for argument in arguments):
            check_overrides(arguments)
            arguments = quote_text(with_preset(arguments), sweep=True)
            sys.argv[1:] = sorted(arguments, key=lambda argument: "=" in argument)  # Hydra expects its flags first
            _run_hydra(task)
        else:
            task(load_config(arguments))
    except KeyboardInterrupt:
        sys.exit(130)
    except runtime.USER_ERRORS as error:
        sys.exit(runtime.report_error(error))


def importable(task: Callable) -> Callable:
    """Returns the same function from its importable module if it was defined in ``__main__``.

    Hydra's launchers pickle the function for their workers, and parts of ``__main__`` cannot be pickled.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if task.__module__ != "__main__" or spec is None:
        return task
    return getattr(importlib.import_module(spec.name), task.__name__)


def _run_hydra(task: Callable[[Config], object]) -> None:
    """Runs ``task`` through Hydra, which handles its flags: ``--multirun``, ``--cfg job``, ``--info`` ..."""
    task = importable(task)

    def guarded(node) -> None:
        try:
            task(to_config(node))
        except runtime.USER_ERRORS as error:
            sys.exit(runtime.report_error(error))

    ConfigStore.instance().store(name="schema", node=Config)
    with _help_without_text():
        hydra.main(version_base="1.3", config_path="pkg://depthg.config.conf", config_name="config")(guarded)()


@contextmanager
def _help_without_text() -> Iterator[None]:
    """Lets Hydra 1.3 give an option an object as its help, which argparse of Python 3.14 refuses; texts are checked."""
    check = getattr(argparse.ArgumentParser, "_check_help", None)
    if check is None:  # an older Python
        yield
        return

    def check_texts(parser: argparse.ArgumentParser, action: argparse.Action) -> None:
        if isinstance(action.help, str):
            check(parser, action)

    argparse.ArgumentParser._check_help = check_texts  # type: ignore[attr-defined,unused-ignore]
    try:
        yield
    finally:
        argparse.ArgumentParser._check_help = check  # type: ignore[attr-defined,unused-ignore]
