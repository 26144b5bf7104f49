"""What ``mode=released`` changes, as the table in docs/paper.md: ``python -m depthg.config.modes`` prints it."""

from __future__ import annotations

from importlib import resources
from typing import Any

from omegaconf import OmegaConf

from depthg.config.composing import load_config
from depthg.config.schema import Config, flatten, options

CONF = resources.files("depthg.config.conf")


def mode_table() -> str:
    """Markdown table of every option that ``mode=released`` sets: both values and the option's help text.

    Options that it sets in one preset only come last, with the preset's name.
    """
    rows = [_row(key, options(Config())[key][1], value) for key, value in _set_by("mode/released.yaml").items()]
    for file in sorted(CONF.joinpath("experiment", "by_mode").iterdir(), key=lambda file: file.name):
        preset = file.name.removesuffix("_released.yaml")
        paper = options(load_config([f"experiment={preset}"]))
        rows += [
            _row(key, paper[key][1], value, f", in `{preset}` alone")
            for key, value in _set_by(f"experiment/by_mode/{file.name}").items()
        ]
    return "\n".join(["| key | paper | released | what it is |", "|---|---|---|---|", *rows])


def _set_by(file: str) -> dict[str, Any]:
    """The options that a preset file sets."""
    content: Any = OmegaConf.to_container(OmegaConf.create(CONF.joinpath(file).read_text(encoding="utf-8")))
    return {key: value for key, value in flatten(content).items() if key != "mode"}


def _row(key: str, paper: Any, released: Any, note: str = "") -> str:
    text = options()[key][0].metadata["help"].replace("|", "\\|")
    return f"| `{key}`{note} | {_text(paper)} | {_text(released)} | {text} |"


def _text(value: Any) -> str:
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    print(mode_table())
