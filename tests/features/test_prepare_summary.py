"""The table names every stage with its numbers, and what was left unfinished."""

from pathlib import Path

from rich.console import Console

from depthg.config.schema import options
from depthg.features.summary import PARTS, CacheUse, print_summary


def shown(stages, root):
    console = Console(width=140, record=True)
    print_summary(stages, root, console)
    return console.export_text()


def test_every_stage_with_its_numbers(tmp_path):
    stages = [
        CacheUse("features, training", 488510, 294_000_000_000, 1234.56, True, tmp_path / "features" / "0123"),
        CacheUse("neighbours", 488510, 58_000_000, 0.5, False, tmp_path / "neighbours" / "4567"),
    ]
    lines = shown(stages, tmp_path).splitlines()
    assert lines[1].split() == ["features,", "training", "made", "488,510", "294.0", "GB", "1234.6", "features/0123"]
    assert lines[2].split() == ["neighbours", "found", "488,510", "58.0", "MB", "neighbours/4567"]
    assert lines[3].split()[:4] == ["total", "294.1", "GB", "1235.1"] and "unfinished" not in "".join(lines)


def test_unfinished_caches_are_counted(tmp_path):
    partial = tmp_path / "features" / ".0123.partial"
    partial.mkdir(parents=True)
    (partial / "features.npy").write_bytes(bytes(100_000))
    text = " ".join(shown([CacheUse("depth", 1, 2, 3.0, True, tmp_path / "depth" / "1")], tmp_path).split())
    assert "1 folders, 10" in text and f"{tmp_path}/*/.*.partial" in text.replace(" ", "") + text


def test_keys_of_the_help_exist():
    for part in PARTS:
        assert any(key.startswith(part) for key in options()), part


def test_paths_with_brackets_are_no_markup(tmp_path):
    root = tmp_path / "[bold]cache"
    assert "[bold]cache" in shown([CacheUse("depth", 1, 2, 3.0, True, Path(root / "depth" / "1"))], root)
