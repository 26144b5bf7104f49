"""The table of what mode=released changes, made from the options."""

from pathlib import Path

from depthg.config.composing import load_config
from depthg.config.modes import mode_table
from depthg.config.schema import Config, options

ROOT = next(folder for folder in Path(__file__).parents if (folder / "mkdocs.yml").is_file())


def test_the_page_holds_the_table_of_the_options():
    page = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    assert mode_table() in page, "docs/paper.md is out of date: python -m depthg.config.modes prints the table"


def test_every_row_states_both_values():
    plain, released = options(Config()), options(load_config(["mode=released", "experiment=cocostuff27_vits8"]))
    rows = [line.split(" | ") for line in mode_table().splitlines()[2:]]
    assert len(rows) > 15
    for key, first, second, text in rows:
        name = key.split("`")[1]
        assert first != second and len(text) > 10, key
        if key.endswith("`"):  # set by the mode itself
            assert first.strip("`").lower() == str(plain[name][1]).lower()
            assert second.strip("`").lower() == str(released[name][1]).lower()
    assert sum("alone" in row[0] for row in rows) == 4


def test_unset_options_are_not_in_the_table():
    assert "`head.dropout`" not in mode_table() and "`mode`" not in mode_table()
