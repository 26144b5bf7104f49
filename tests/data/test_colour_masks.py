"""Label maps in colour: classes by #rrggbb or a labelmap.txt, and what is said about other colours."""

import numpy as np
import pytest
from miniature import settings
from PIL import Image

from depthg.data import load_dataset
from depthg.data.classes import read_classes
from depthg.data.files import DataError, read_label
from depthg.features.preparation import Preparation

LABELMAP = """# label:color_rgb:parts:actions
background:0,0,0::
road:128,64,128::
traffic sign:220,220,0:left,right:
void:1,2,3::
"""
HEX = "background #000000\nroad #804080\ntraffic sign #dcdc00\nvoid #010203\n"
COLOURS = np.array([(0, 0, 0), (128, 64, 128), (220, 220, 0), (1, 2, 3), (224, 224, 192)], np.uint8)
INDICES = np.array([[0, 1, 2], [3, 4, 1]])
EXPECTED = [[0, 1, 2], [-1, -1, 1]]


def classes(tmp_path, text=LABELMAP):
    (tmp_path / "classes.txt").write_text(text)
    return read_classes(tmp_path / "classes.txt")


def read(tmp_path, pixels, text=LABELMAP, name="label.png"):
    known = classes(tmp_path, text)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(tmp_path / name)
    return read_label(tmp_path / name, known.table, colours=known.colours)


@pytest.mark.parametrize(
    "text", [LABELMAP, HEX, "5 background #000000\n7 road #804080\n8 traffic sign #DCDC00\n1 void #010203\n"]
)
def test_classes_by_colour(tmp_path, text):
    known = classes(tmp_path, text)
    assert known.names == ("background", "road", "traffic sign") and known.palette[1].tolist() == [128, 64, 128]
    got = read(tmp_path, COLOURS[INDICES], text)
    assert got.dtype == np.int64 and got.tolist() == EXPECTED
    opaque = np.array([[255, 255, 0], [255, 255, 255]], np.uint8)[..., None]
    got = read(tmp_path, np.concatenate([COLOURS[INDICES], opaque], -1), text)
    assert got.tolist() == [[0, 1, -1], [-1, -1, 1]], "transparent pixels are void"


def test_ids_of_a_labelmap_count_from_zero(tmp_path):
    ids = INDICES.clip(max=3).astype(np.uint8)
    assert read(tmp_path, ids).tolist() == [[0, 1, 2], [-1, -1, 1]]
    assert read(tmp_path, np.stack([ids] * 3, -1)).tolist() == [[0, 1, 2], [-1, -1, 1]]


def test_palettes(tmp_path):
    image = Image.frombytes("P", (3, 2), INDICES.astype(np.uint8).tobytes())
    image.putpalette(COLOURS[[1, 0, 2, 3, 4]].tobytes())  # in another order than the file of classes
    assert read(tmp_path, image).tolist() == [[1, 0, 2], [-1, -1, 0]], "a labelmap.txt has colours and no ids"
    image = Image.frombytes("P", (3, 2), INDICES.clip(max=3).astype(np.uint8).tobytes())
    image.putpalette(COLOURS[[1, 0, 2, 3]].tobytes())
    assert read(tmp_path, image, HEX).tolist() == [[0, 1, 2], [-1, -1, 1]], "other files have ids: palettes are ignored"


def test_other_colours_are_counted(tmp_path):
    pixels = COLOURS[INDICES]
    pixels[0, 0], pixels[1, 1:] = (9, 9, 8), (200, 100, 50)
    with pytest.raises(
        DataError, match=r"label\.png has the colours #c86432 \(2 pixels\), #090908 \(1 pixels\), which no"
    ):
        read(tmp_path, pixels)
    with pytest.raises(DataError, match=r"#804080 \(2 pixels\)"):
        read(tmp_path, COLOURS[INDICES], HEX.replace("dcdc00", "804080"))
    with pytest.raises(DataError, match=r"has the label ids 9, but"):
        read(tmp_path, np.full((2, 3, 3), 9, np.uint8))
    with pytest.raises(DataError, match=r"without loss, this one is a JPEG"):
        read(tmp_path, COLOURS[INDICES], name="label.jpg")


def test_colours_that_are_no_colours(tmp_path):
    with pytest.raises(DataError, match=r"classes\.txt, line 2: 'road:0,0,256::' is no colour"):
        classes(tmp_path, "# a\nroad:0,0,256::\n")
    assert classes(tmp_path, "a\nb\n").colours is None
    assert classes(tmp_path, "7: car\n8: bus\n").names == ("car", "bus")


def test_every_colour_of_a_map_finds_its_class(tmp_path):
    rng = np.random.default_rng(0)
    rgb = np.unique(rng.integers(0, 256, (300, 3), np.uint8), axis=0)
    known = classes(tmp_path, "".join(f"c{n} #{bytes(colour).hex()}\n" for n, colour in enumerate(rgb)))
    ids = rng.integers(0, len(rgb), (40, 50))
    assert (known.colours.labels_of(rgb[ids], "x.png") == ids).all()


def test_a_folder_with_masks_of_an_annotation_tool(tmp_path):
    photos, masks = tmp_path / "photos", tmp_path / "SegmentationClass"
    for folder in (photos, masks):
        folder.mkdir()
    for number in range(6):
        Image.new("RGB", (64, 64), (40 * number, 90, 20)).save(photos / f"{number}.jpg")
        Image.fromarray(COLOURS[np.arange(64)[None].repeat(64, 0) % (number % 3 + 1)]).save(masks / f"{number}.png")
    (tmp_path / "labelmap.txt").write_text(LABELMAP)
    data = load_dataset("folder", root=photos, labels=masks, classes=tmp_path / "labelmap.txt")
    assert data.classes == ("background", "road", "traffic sign")
    assert set(np.unique(data.val.label(1))) == {0, 1, 2} and data.val.names[1] == "2"

    def key():
        config = settings(
            photos, "data=folder", f"data.root={photos}", f"data.labels={masks}", "depth.source=none",
            f"data.classes={tmp_path / 'labelmap.txt'}", "backbone.pca=0",
        )  # fmt: skip
        preparation = Preparation(config, "cpu")
        return preparation.label_plan(preparation.evaluation_views).settings

    first = key()
    (tmp_path / "labelmap.txt").write_text(LABELMAP.replace("220,220,0", "221,220,0"))
    assert key() != first, "the colours decide what is cached"
