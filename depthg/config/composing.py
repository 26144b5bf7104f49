"""Composes settings from presets and ``key=value``, or from a run folder; errors name the nearest valid key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from depthg.config.schema import GROUPS, Config, nearest, options, validate
from depthg.storage.safe_text import check_no_references, parse_yaml

SIZES = ("data.size", "data.eval_size")
RESUME_KEYS = ("resume", "device", "cache.dir", "data.workers", "data.max_pixels", "iterations")


def group_choices(group: str) -> list[str]:
    """Names of the presets of one config group, e.g. ``experiment``."""
    files = (resources.files("depthg.config.conf") / group).iterdir()
    return sorted(Path(item.name).stem for item in files if item.name.endswith(".yaml"))


def preset(group: str, name: str) -> dict:
    """The settings of one preset, e.g. ``preset("mode", "released")``."""
    file = resources.files("depthg.config.conf") / group / f"{name}.yaml"
    return parse_yaml(file.read_text(encoding="utf-8"))


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises ValueError for an unknown key or preset, naming the nearest valid one."""
    keys = [*options(), *GROUPS]
    check_spelling(overrides, keys)
    given = []
    for before, override in zip(["", *overrides], overrides, strict=False):
        if override.startswith("-") or (before.startswith("-") and "=" not in override):  # --cfg job
            continue
        key, equals, value = override.partition("=")
        key = key.lstrip("+~")
        if key.startswith("hydra"):
            continue
        if not equals:
            raise ValueError(f"{override!r} is not of the form key=value{nearest(key, keys)}")
        if key in GROUPS:
            names = group_choices(key)
            for choice in value.split(","):
                if choice not in names:
                    raise ValueError(
                        f"unknown {key}={choice!r}; choose one of {', '.join(names)}{nearest(choice, names)}"
                    )
        elif key not in keys:
            raise ValueError(f"unknown key {key!r}{nearest(key, keys)} (all keys: --help)")
        given.append(key)
    extra = [key for key in given if key not in RESUME_KEYS]
    if "resume" in given and extra:
        raise ValueError(f"resume continues with the run's own settings; drop {', '.join(extra)}")


def check_spelling(overrides: Sequence[str], keys: Sequence[str]) -> None:
    """Raises ValueError for habits of other programs: ``--key value``, spaces around ``=``, one number for a size."""
    for number, override in enumerate(overrides):
        key, equals, value = override.partition("=")
        after = overrides[number + 1] if number + 1 < len(overrides) else ""
        name = key.lstrip("-").replace("-", "_")
        if key.startswith("-") and name in keys:
            raise ValueError(
                f"{override!r}: settings have no dashes and no space; write {name}={value or after or 'VALUE'}"
            )
        plain = after and not after.startswith("-") and after.partition("=")[0] not in keys
        if key in keys and plain and not value and (equals or after.startswith("=")):
            wanted = after.lstrip("=") or next(iter(overrides[number + 2 :]), "VALUE")
            raise ValueError(f"{override!r} {after!r}: no spaces around =; write {key}={wanted}")
        if key in SIZES and re.fullmatch(r"\d+(\s*[x,]\s*\d+)?", value):
            sides = (re.findall(r"\d+", value) * 2)[:2]
            raise ValueError(f"{override} is no height and width; write '{key}=[{','.join(sides)}]'")


def with_preset(overrides: Sequence[str]) -> list[str]:
    """The overrides, with ``experiment=photos`` first where ``data=folder`` is chosen and no experiment."""
    data = [override for override in overrides if override.partition("=")[0] == "data"]
    chosen = any(override.partition("=")[0] == "experiment" for override in overrides)
    return ["experiment=photos", *overrides] if data[-1:] == ["data=folder"] and not chosen else list(overrides)


def quote_text(overrides: Sequence[str], sweep: bool = False) -> list[str]:
    """Quotes the values of text keys that Hydra cannot parse unquoted, e.g. a path with ü or (1) in it.

    Quoted values and interpolations stay unchanged; so do, with ``sweep``, lists of values to sweep over.
    """
    overrides = [numbers_unquoted(override) for override in overrides]
    text_keys = {key for key, (item, _) in options().items() if str(item.type).startswith("str")}
    quoted = []
    for override in overrides:
        key, equals, value = override.partition("=")
        swept = sweep and ("," in value or re.match(r"\w+\(", value))
        plain = re.fullmatch(r"""[\w./+:%*@\\-]*|'([^'\\]|\\.)*'|"([^"\\]|\\.)*"|.*\$\{.*""", value, re.ASCII)
        if key.lstrip("+~") in text_keys and equals and not (plain or swept):
            escaped = re.sub(r"(\\*)('|$)", lambda end: end[1] * 2 + ("\\'" if end[2] else ""), value)
            override = f"{key}='{escaped}'"
        quoted.append(override)
    return quoted


def numbers_unquoted(override: str) -> str:
    """``data.range=0,4095`` as text and ``data.bands=3,2,1`` as a list, as Hydra and OmegaConf write them.

    Other overrides stay unchanged.
    """
    key, _, value = override.partition("=")
    value = value.strip("'\"[] ")
    if key == "data.range" and re.fullmatch(r"[-+.\deE]+\s*,\s*[-+.\deE]+", value):
        return f"{key}='{value}'"
    if key == "data.bands" and re.fullmatch(r"\d+(\s*,\s*\d+)*", value):
        return f"{key}=[{value}]"
    return override


def to_config(node) -> Config:
    """Converts Hydra's composed node (or a plain dict with the same keys) to the validated dataclass."""
    config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), node))
    return validate(config)


def load_config(overrides: Sequence[str] = ()) -> Config:
    """Composes and validates settings in Python: ``load_config(["experiment=demo", "seed=1"])``.

    ``resume=RUN`` takes the settings stored in the run's ``config.yaml``; only device, cache.dir, data.workers,
    data.max_pixels and iterations can be overridden.

    Raises:
        ValueError: an unknown key, an impossible value, or damaged stored settings.
        FileNotFoundError: ``resume`` is not a run folder.
    """
    check_overrides(overrides)
    given = dict(override.split("=", 1) for override in overrides)
    if given.get("resume", "null") not in ("null", ""):
        stored = stored_settings(Path(given["resume"]).expanduser())
        return to_config(OmegaConf.merge(stored, OmegaConf.from_dotlist(list(overrides))))
    ConfigStore.instance().store(name="schema", node=Config)
    with hydra.initialize_config_module("depthg.config.conf", version_base="1.3"):
        try:
            return to_config(hydra.compose("config", overrides=quote_text(with_preset(overrides))))
        except HydraException as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise ValueError(f"cannot use {' '.join(overrides)}: {reason}") from error


def _near_runs(run: Path) -> str:
    """The run that may be meant by a folder that does not exist, or those beside it."""
    folders = dict.fromkeys((run.parent, Path("runs")))
    found = [file.parent for folder in folders for file in sorted(folder.glob("*/config.yaml"))]
    same = [path for path in found if path.name == run.name]
    if same:
        return f"; did you mean {same[0]}?"
    meant = nearest(run.name, [path.name for path in found])
    return meant or (f"; runs: {', '.join(map(str, found[:5]))}" if found else "")


def stored_settings(run: Path) -> dict:
    """Reads the settings in a run folder's ``config.yaml`` without running code.

    Raises:
        ValueError: the file is damaged.
        FileNotFoundError: the folder has no ``config.yaml``.
    """
    path = run / "config.yaml"
    try:
        stored = check_no_references(parse_yaml(path.read_text(encoding="utf-8")))
        to_config(stored)
    except (FileNotFoundError, NotADirectoryError) as error:
        missing = "it has no config.yaml" if run.exists() else f"it does not exist{_near_runs(run)}"
        raise FileNotFoundError(f"{run} is not a run folder: {missing}") from error
    except (UnicodeDecodeError, OmegaConfBaseException, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    data = stored.get("data")
    if isinstance(data, dict) and data.get("name") == "folder":
        data.setdefault("range", "type")  # how runs without this setting were trained
    return stored
