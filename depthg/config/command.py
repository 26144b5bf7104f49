"""Commands whose arguments are settings: ``key=value``, help of every key, and Hydra's own flags."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

import hydra
from hydra.core.config_store import ConfigStore
from rich.markup import escape
from rich.table import Table

from depthg.config.composing import check_overrides, group_choices, load_config, quote_text, to_config
from depthg.config.schema import GROUPS, Config, options
from depthg.runtime import command as runtime


def print_help(command: str, summary: str, overrides: Sequence[str] = (), parts: Sequence[str] = ()) -> None:
    """Usage, presets, and every key (of some ``parts``) with the value it has under the given presets."""
    values = options(load_config(overrides))
    values = {key: value for key, value in values.items() if not parts or key.startswith(tuple(parts))}
    console = runtime.console()
    console.print(f"[bold]python -m {command} \\[key=value ...][/bold]\n\n{summary}\n", highlight=False)
    for group in GROUPS:
        console.print(f"  {group}={'|'.join(group_choices(group))}", highlight=False)
    console.print("\n  --multirun with key=a,b,c sweeps; --cfg job prints the composed settings as YAML")
    console.print("  --help with presets (--help experiment=camvid) shows their values\n")
    table = Table("key", "value", "meaning", box=None, pad_edge=False)
    for key, (item, value) in values.items():
        text, choices = (
            item.metadata.get("help") or f"{item.name} of this term (lambda, b)",
            item.metadata.get("choices"),
        )
        if choices and not all(choice in text for choice in choices):
            text += f" ({' | '.join(choices)})"
        table.add_row(key, "none" if value is None else escape(str(value)), escape(text))
    console.print(table)


def run_command(task: Callable[[Config], object], command: str, summary: str, parts: Sequence[str] = ()) -> None:
    """Parses ``sys.argv``, composes and checks the settings, runs ``task``; user errors end in one line, status 1.

    ``parts``: beginnings of the keys that the help shows; all when empty.
    """
    arguments = sys.argv[1:]
    try:
        if {"-h", "--help"} & set(arguments):
            given = [argument for argument in arguments if not argument.startswith("-")]
            print_help(command, summary, given, parts)
        elif any(argument.startswith("-") for argument in arguments):
            check_overrides(arguments)
            arguments = quote_text(arguments, sweep=True)
            sys.argv[1:] = sorted(arguments, key=lambda argument: "=" in argument)  # Hydra wants its flags first
            _run_hydra(task)
        else:
            task(load_config(arguments))
    except KeyboardInterrupt:
        sys.exit(130)
    except runtime.USER_ERRORS as error:
        sys.exit(runtime.report_error(error))


def importable(task: Callable) -> Callable:
    """The same function under the name that other processes import it by, not as a part of ``__main__``.

    Hydra's launchers send it to their workers, and could not send all that belongs to ``__main__``.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if task.__module__ != "__main__" or spec is None:
        return task
    return getattr(importlib.import_module(spec.name), task.__name__)


def _run_hydra(task: Callable[[Config], object]) -> None:
    """Hydra's own flags: ``--multirun``, ``--cfg job``, ``--info`` ..."""
    task = importable(task)

    def guarded(node) -> None:
        try:
            task(to_config(node))
        except runtime.USER_ERRORS as error:
            sys.exit(runtime.report_error(error))

    ConfigStore.instance().store(name="schema", node=Config)
    hydra.main(version_base="1.3", config_path="pkg://depthg.config.conf", config_name="config")(guarded)()
