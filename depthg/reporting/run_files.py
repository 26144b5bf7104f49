"""What the pages read of a run folder, and a protocol in words."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

from depthg.model.run_folder import read_log
from depthg.reporting.values import text, words
from depthg.storage.safe_text import parse_json, parse_yaml


def read_run(run: Path) -> tuple[dict, dict, list[dict]]:
    """Settings, metrics and log of a run folder; empty where a file is absent.

    Raises:
        ValueError: config.yaml or metrics.json is damaged.
    """
    config = read_mapping(run / "config.yaml", parse_yaml)
    return config, read_mapping(run / "metrics.json", parse_json), read_log(run / "metrics.jsonl")


def read_mapping(path: Path, parse: Callable[[str], object] = parse_json) -> dict:
    """A parsed file that holds a mapping; empty without the file.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except ValueError as reason:
        raise ValueError(
            f"{path} is damaged ({reason}); restore it or remove it, then build the report again"
        ) from reason
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not keys and values; remove it, then build again")
    return value


def read_image_scores(path: Path) -> dict[str, tuple[float, float]]:
    """Accuracy and mIoU of every labelled image, from ``images.csv``; empty without the file.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return {row["name"]: (float(row["accuracy"]), float(row["miou"])) for row in rows if row["miou"]}
    except FileNotFoundError:
        return {}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); remove it, then build again") from error


def protocol_words(protocol: Mapping) -> list[str]:
    """The protocol in words, one item per key; unknown keys are shown as they are."""
    phrases = {
        "split": lambda v: f"{v} split",
        "resolution": lambda v: " \u00d7 ".join(map(str, v)) + " px" if isinstance(v, (list, tuple)) else f"{v} px",
        "crop": lambda v: "no crop" if v == "none" else f"{v}" if "crop" in str(v) else f"crop {v}",
        "flip": lambda v: "flip averaging" if v else "no flip",
        "crf": lambda v: "CRF" if v else "no CRF",
        "checkpoint": lambda v: f"{v} checkpoint",
        "mode": lambda v: f"mode {v}",
        "seed": lambda v: f"seed {v}",
        "probe_reinit": lambda v: f"cluster probe restarted at iteration {v}" if v else "cluster probe never restarted",
    }
    known = [str(phrases[key](protocol[key])) for key in phrases if protocol.get(key) is not None]
    return known + [f"{words(key)} {text(value)}" for key, value in protocol.items() if key not in phrases]
