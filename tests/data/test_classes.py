"""Class files: every way to write one, and what cannot be one."""

import numpy as np
import pytest

from depthg.data.classes import read_classes
from depthg.data.files import DataError


def write(root, text):
    path = root / "classes.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def mapped(classes):
    """{id: label} of every known id."""
    return {int(label_id): int(classes.table[label_id]) for label_id in np.flatnonzero(classes.table != -2)}


def test_names_alone_count_from_zero(tmp_path):
    classes = read_classes(write(tmp_path, "\ufeffroad\r\n\r\n# a comment\r\ntraffic light\r\n Straße \r\n"))
    assert classes.names == ("road", "traffic light", "Straße")
    assert mapped(classes) == {0: 0, 1: 1, 2: 2, 255: -1}
    assert classes.palette.shape == (3, 3) and classes.palette.dtype == np.uint8
    assert len({tuple(colour) for colour in classes.palette.tolist()}) == 3


@pytest.mark.parametrize("separator", [" ", "\t", ": ", ",", " : "])
def test_ids_in_front(tmp_path, separator):
    text = "".join(f"{label_id}{separator}{name}\n" for label_id, name in ((7, "car"), (0, "tree 2"), (300, "car")))
    classes = read_classes(write(tmp_path, text))
    assert classes.names == ("car", "tree 2") and mapped(classes) == {7: 0, 0: 1, 300: 0, 255: -1}


def test_void_and_255(tmp_path):
    assert mapped(read_classes(write(tmp_path, "Void\nroad\n"))) == {0: -1, 1: 0, 255: -1}
    assert mapped(read_classes(write(tmp_path, "255 road\n3 void\n"))) == {255: 0, 3: -1}


def test_colours(tmp_path):
    classes = read_classes(write(tmp_path, "0 road #804080\n1 #5 bus\n2 road #ffffff\n3 void #000000\n4 sky #8040g0\n"))
    assert classes.names == ("road", "#5 bus", "sky #8040g0")
    assert classes.palette[0].tolist() == [128, 64, 128], "the first colour of a class"
    assert classes.palette[1].tolist() != [0, 0, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no class"),
        ("# nothing\n\n", "names no class"),
        ("void\n", "names no class"),
        ("0 road\nsky\n", r"line 2: 'sky' has no id, others have"),
        ("0 road\n1\n", r"line 2: the id 1 has no name"),
        ("0 road\n0 sky\n", r"line 2: .* comes twice"),
        ("0 road\n65536 sky\n", r"line 2: .* is over 65535"),
        ("0 #ffffff\n", r"line 1: .* has no name"),
        (b"\xe9\n", "not UTF-8 text"),
        (b"\xff\xfe\x00", "not UTF-16 text"),
    ],
)
def test_files_that_are_no_class_file(tmp_path, text, message):
    with pytest.raises(DataError, match=rf"classes\.txt.*{message}"):
        read_classes(write(tmp_path, text))


def test_missing_file(tmp_path):
    for path in (tmp_path, tmp_path / "gone.txt"):
        with pytest.raises(FileNotFoundError, match=r"data\.classes: there is no file"):
            read_classes(path)
