"""Class maps: names and numbers on both sides, and errors that name the line."""

import numpy as np
import pytest

from depthg.data.class_map import read_class_map
from depthg.data.files import DataError, label_table

RUN = ("road", "car", "house", "tree", "7")
DATA = ("ground", "built", "green")
TABLE = label_table({0: -1, 4: 0, 9: 1, 255: 2})


def read(folder, text, table=TABLE):
    (folder / "map.txt").write_text(text, encoding="utf-8")
    return read_class_map(folder / "map.txt", RUN, DATA, table)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("road -> ground\ncar->ground\nhouse ->built\ntree -> green\n", [0, 0, 1, 2, -1]),
        ("# mine\n\n  0 -> 4\n3 -> 255\n", [0, -1, -1, 2, -1]),
        ("7 -> built\nroad -> 9\n", [1, -1, -1, -1, 1]),  # the class that is called 7
        ("road -> void\ncar -> 0\nhouse -> built", [-1, -1, 1, -1, -1]),
    ],
)
def test_names_and_numbers(tmp_path, text, expected):
    found = read(tmp_path, text)
    assert found.dtype == np.int64 and found.tolist() == expected


def test_without_ids_numbers_are_those_of_the_classes(tmp_path):
    assert read(tmp_path, "1 -> 2\n", None).tolist() == [-1, 2, -1, -1, -1]


@pytest.mark.parametrize(
    "text, message",
    [
        ("road ground\n", "line 1: 'road ground' is not of the form"),
        ("road ->\n", "line 1: 'road ->' is not of the form"),
        ("\nraod -> ground\n", "line 2: the run has no class 'raod'; did you mean 'road'"),
        ("5 -> ground\n", r"the run has no class '5' \(it has road, car, house, tree, 7\)"),
        ("road -> grund\n", "the labels have no class 'grund'; did you mean 'ground'"),
        ("road -> 5\n", "the labels have no class '5'"),
        ("road -> 99999999999999999999\n", "the labels have no class '9999"),
        ("road -> ground\n0 -> built\n", "line 2: the run's class '0' is given twice"),
        ("# nothing\n", "maps no class of the run"),
        ("road -> void\n", "maps no class of the run"),
    ],
)
def test_errors_name_the_line(tmp_path, text, message):
    with pytest.raises(DataError, match=rf"map\.txt.*{message}"):
        read(tmp_path, text)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.class_map: there is no file \S*none\.txt"):
        read_class_map(tmp_path / "none.txt", RUN, DATA)
    (tmp_path / "map.txt").write_bytes(b"\xff\xfe\x00road")
    with pytest.raises(DataError, match="is no class map: it is not UTF-8 text"):
        read_class_map(tmp_path / "map.txt", RUN, DATA)
