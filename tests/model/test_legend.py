"""``legend.yaml``: equal names are one id, null is void, and what cannot be meant is refused by file and key."""

import numpy as np
import pytest
import torch

from depthg.model.legend import FILE, VOID, checksum_of, legend_of, read_legend, write_legend

NAMES = ("cluster 0", "cluster 1", "tree", "tree", "cluster 4")


def read(tmp_path, text, checksum="0"):
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    return read_legend(tmp_path, NAMES, checksum)


def test_equal_names_are_one_id_and_unlisted_clusters_stay_alone(tmp_path):
    found = read(tmp_path, "clusters:\n  4: road\n  0: ' road '\n  1: Void\ncolours: {road: '#0a0B0c'}\n")
    assert found.names == ("road", "tree", "tree")  # two clusters that the run calls tree are not merged by that
    np.testing.assert_array_equal(found.table, [0, VOID, 1, 2, 0])
    np.testing.assert_array_equal(found.first, [0, 2, 3])
    assert found.colours == {"road": (10, 11, 12)}


def test_a_given_name_does_not_merge_with_an_unlisted_one():
    assert legend_of({0: "tree"}, NAMES).table.tolist() == [0, 1, 2, 3, 4]


def test_numbers_and_foreign_letters_are_names(tmp_path):
    assert read(tmp_path, "clusters: {0: 12, 1: Straße, 2: 1.5, 3: 木}").names[:4] == ("12", "Straße", "1.5", "木")


def test_what_is_written_is_read_back_and_may_be_written_over(tmp_path):
    given, colours = {0: "a: b # c", 2: None, 3: "null", 1: "yes"}, {"a: b # c": (1, 2, 255)}
    for _ in range(2):
        write_legend(tmp_path, given, "12345678", colours)
        found = read_legend(tmp_path, NAMES, "12345678")
        assert found.names == ("a: b # c", "yes", "null", "cluster 4") and found.table.tolist() == [0, 1, VOID, 2, 3]
        assert found.colours == colours
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_without_a_file_there_is_no_legend(tmp_path):
    assert read_legend(tmp_path, NAMES, "0") is None


def test_names_of_other_clusters_are_left_out_aloud(tmp_path):
    one, other = checksum_of(torch.zeros(2, 3)), checksum_of(torch.ones(2, 3))
    assert one != other and len(one) == 8
    write_legend(tmp_path, {0: "road"}, one)
    assert read_legend(tmp_path, NAMES, one).names[0] == "road"
    with pytest.warns(UserWarning, match=f"another training or checkpoint.*{one}, not {other}.*made_for"):
        assert read_legend(tmp_path, NAMES, other) is None


@pytest.mark.parametrize("text, message", [
    ("clusters: {5: road}", "no cluster 5; the run has clusters 0 to 4"),
    ("clusters: {-1: road}", "no cluster -1"),
    ("clusters: {road: 0}", "'road' is no number of a cluster"),
    ("clusters: {true: road}", "True is no number"),
    ("clusters: [road, sky]", "clusters must hold a line"),
    ("clusters: {0: yes}", "reads as True; put it in quotes"),
    ("clusters: {0: ''}", "the name of 0 must be one line"),
    ("clusters: {0: [a]}", "the name of 0 must be one line"),
    ('clusters: {0: "a\\nb"}', "the name of 0 must be one line"),
    (f"clusters: {{0: {'x' * 101}}}", "1 to 100 characters"),
    ("clusters: {0: null, 1: null, 2: null, 3: null, 4: null}", "every cluster is void"),
    ("colours: {sky: '#102030'}", "no cluster has the name 'sky'"),
    ("clusters: {0: sky}\ncolours: {sky: red}", "#rrggbb"),
    ("colours: 3", "colours must hold lines"),
    ("names: {0: road}", "'names' is not one of its keys"),
    ("- a", "holds no keys and values"),
    ("clusters: &a {0: *a}", "refers to another part"),
    ("clusters: !!python/object/apply:os.system [ls]", "no YAML of plain values"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_the_file(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, text)
    assert str(tmp_path / FILE) in str(error.value)


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 101, True])
def test_a_name_that_could_not_be_read_is_not_written(tmp_path, name):
    with pytest.raises(ValueError, match="the name of 0"):
        write_legend(tmp_path, {0: name}, "0")
    assert not list(tmp_path.iterdir())
