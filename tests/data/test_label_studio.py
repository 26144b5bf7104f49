"""Masks of Label Studio's brush: the packed form, exports of projects, and what cannot be read."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthg.data.brush_masks import decode_values, encode_mask
from depthg.data.classes import read_classes
from depthg.data.files import DataError, read_label
from depthg.data.label_studio import write_label_maps

INTERFACE = """<View><Image name="image" value="$image"/><BrushLabels name="brush" toName="image">
<Label value="sky &amp; cloud" background="#0080ff"/><Label value="road"/><Label value="void"/></BrushLabels></View>"""
NOT_DRAWN = {"type": "rectanglelabels", "value": {"x": 1}}


def test_bytes_that_label_studios_own_encoder_gives():
    mask = np.zeros((3, 7), bool)
    mask[0, 2:5] = mask[2] = True
    packed = bytes([0, 0, 0, 84, 57, 27, 252, 224, 22, 255, 241, 24, 6, 27, 255, 0])
    assert encode_mask(mask) == packed[:-1], "a last byte of padding is left out"
    assert ((decode_values(packed, (3, 7)) == 255) == mask).all()
    soft = [0, 0, 0, 16, 57, 27, 252, 96, 17, 136, 199, 145, 31, 248]
    assert decode_values(soft, (1, 4)).tolist() == [[0, 17, 200, 255]]
    different = int(f"{8:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}0{0:02b}{7:03b}", 2)  # one run of 8 different values
    body = different << 64 | int.from_bytes(bytes([1, 2, 3, 40, 5, 6, 7, 80]), "big")
    bits = 32 + 5 + 16 + 6 + 64
    assert decode_values((body << (-bits % 8)).to_bytes(-(-bits // 8), "big"), (1, 2)).tolist() == [[40, 80]]


@pytest.mark.skipif(find_spec("label_studio_sdk") is None, reason="label-studio-sdk is not installed")
def test_label_studios_own_decoder_reads_masks():
    from label_studio_sdk.converter.brush import decode_rle, mask2rle

    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 60, (20, 2)).tolist():
        mask = rng.random((height, width)) < rng.random()
        found = np.array(decode_rle(list(encode_mask(mask)))).reshape(height, width, 4)
        assert (found == 255 * mask[..., None]).all()
        soft = rng.integers(0, 256, mask.shape).astype(np.uint8)
        assert (decode_values(mask2rle(soft), mask.shape) == soft).all()


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_masks_come_back(height, width, share, seed):
    mask = np.random.default_rng(seed).random((height, width)) < share
    assert ((decode_values(encode_mask(mask), mask.shape) > 0) == mask).all()


@pytest.mark.parametrize("rows", [255, 256, 257, 1000])
def test_long_runs_are_split(rows):
    """Lengths have at most 16 bits: 256 rows of 64 pixels and four values."""
    mask = np.ones((rows + 1, 64), bool)
    mask[0] = False
    assert ((decode_values(encode_mask(mask), mask.shape) > 0) == mask).all()


def test_damaged_masks_are_refused():
    whole = encode_mask(np.eye(9, dtype=bool))
    with pytest.raises(ValueError, match=r"324 values of 8 bits, not 400 of 8"):
        decode_values(whole, (10, 10))
    for cut in (0, 3, 7, len(whole) - 2):
        with pytest.raises(ValueError, match="ends too early"):
            decode_values(whole[:cut], (9, 9))
    bits = f"{4:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}1{2:02b}{200:08b}{255:08b}".ljust(80, "0")
    with pytest.raises(ValueError, match="lengths exceed its size"):
        decode_values(int(bits, 2).to_bytes(10, "big"), (1, 1))
    with pytest.raises(ValueError, match="too large"):
        encode_mask(np.broadcast_to(np.zeros(1, bool), (2**15, 2**15)))


def drawn(mask, *names):
    height, width = mask.shape
    value = {"format": "rle", "rle": list(encode_mask(mask)), "brushlabels": list(names)}
    return {"type": "brushlabels", "original_width": width, "original_height": height, "value": value}


def task(results, **data):
    return {"id": 7, "data": data or {"photo": "a.jpg"}, "annotations": [{"result": results}]}


def write(folder, tasks, interface=INTERFACE):
    (folder / "x.xml").write_text(interface)
    (folder / "export.json").write_text(tasks if isinstance(tasks, str) else json.dumps(tasks))
    return folder / "export.json", folder / "out", folder / "x.xml"


def test_an_export_becomes_label_maps(tmp_path):
    whole, left = np.ones((4, 6), bool), np.zeros((4, 6), bool)
    left[:, :2] = True
    corrected = task(
        [drawn(whole, "road"), drawn(left, "sky & cloud"), NOT_DRAWN], photo="sub/a b.jpg", image="x/y.jpg"
    )
    corrected["annotations"] += [{"result": [drawn(left, "road")], "was_cancelled": True}]
    corrected["annotations"].insert(0, {"result": [drawn(whole, "sky & cloud")]})
    tasks = [
        corrected,
        task([drawn(left, "void"), drawn(~left, "road")], image="/data/local-files/?d=photos/b%20%C3%A9.png"),
        task([drawn(left, "road")], image="/data/upload/3/1a2b-c%231.png"),
        {"id": 8, "data": {"photo": "d.jpg"}, "annotations": []},
        {"id": 9, "data": {"photo": "e.jpg"}, "annotations": [], "predictions": [{"result": [drawn(whole, "road")]}]},
    ]
    with pytest.warns(UserWarning, match="not drawn with the brush and left out: 1 rectanglelabels"):
        written = write_label_maps(*write(tmp_path, tasks))
    labels = tmp_path / "out" / "labels"
    assert written == [labels / "sub/a b.png", labels / "photos/b é.png", labels / "1a2b-c#1.png"]
    assert (tmp_path / "out" / "classes.txt").read_text().splitlines() == [
        "0 sky & cloud #0080ff", "1 road", "2 void", "255 void",
    ]  # fmt: skip
    known = read_classes(tmp_path / "out" / "classes.txt")
    assert known.names == ("sky & cloud", "road")
    first, second, third = (read_label(path, known.table, colours=known.colours) for path in written)
    assert (first == np.where(left, 0, 1)).all() and (second == np.where(left, -1, 1)).all()
    assert (third == np.where(left, 1, -1)).all(), "without a mask: void"


@pytest.mark.parametrize("n", [255, 256, 300])
def test_many_classes(tmp_path, n):
    labels = "".join(f'<Label value="class {i}"/>' for i in range(n))
    interface = f'<View><BrushLabels name="b" toName="i">{labels}</BrushLabels></View>'
    row = np.arange(n)[None]
    tasks = [task([drawn(row == i, f"class {i}") for i in range(0, n, 2)])]
    [path] = write_label_maps(*write(tmp_path, tasks, interface))
    known = read_classes(tmp_path / "out" / "classes.txt")
    assert (read_label(path, known.table) == np.where(row % 2, -1, row)).all() and len(known.names) == n


def test_what_cannot_be_read_is_a_sentence(tmp_path):
    mask, other = np.ones((2, 3), bool), np.ones((3, 2), bool)
    broken, huge = drawn(mask, "road"), drawn(mask, "road")
    broken["value"]["rle"], huge["original_width"] = [0, 300], 10**9
    for tasks, message in (
        ([], "no annotation with brush masks; export the project as JSON, not JSON-MIN"),
        ([task([NOT_DRAWN])], "no annotation with brush masks"),
        ("{", "no export of Label Studio in its format JSON"),
        ([task([drawn(mask, "tree")])], "the label 'tree' is not in the labelling interface"),
        ([task([drawn(mask, "road"), drawn(other, "road")])], "its masks differ in size"),
        ([task([broken])], "task 7 cannot be read"),
        ([task([huge])], "are read"),
        ([task([drawn(mask, "road")], photo="../a.png")], "leads out of the folder"),
        ([task([drawn(mask, "road")], photo="/etc/a.png")], "leads out of the folder"),
        ([task([drawn(mask, "road")], photo="C:\\a.png")], "leads out of the folder"),
        ([task([drawn(mask, "road")], text="no picture")], "task 7 cannot be read"),
        ([{"annotations": [{}]}], "task None cannot be read: KeyError 'result'"),
        ([3], "task None cannot be read"),
    ):
        with pytest.raises(DataError, match=message):
            write_label_maps(*write(tmp_path, tasks))
    for interface in ("<View", "<View/>", '<!DOCTYPE x [<!ENTITY a "b">]><View/>', INTERFACE.replace('"road"', '""')):
        with pytest.raises(DataError, match=r"x\.xml"):
            write_label_maps(*write(tmp_path, [], interface))
    with pytest.raises(DataError, match=r"none\.json is no export"):
        write_label_maps(tmp_path / "none.json", tmp_path / "out", write(tmp_path, [], INTERFACE)[2])
    assert not list(tmp_path.rglob("*.png"))
