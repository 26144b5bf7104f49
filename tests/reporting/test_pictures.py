"""Panels: every pixel of a tile is what the map says, columns come and go with what is known."""

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageDraw

from depthg.data.colours import class_palette, depth_colours, depth_scale
from depthg.reporting.pictures import GAP, MARGIN, STRIPES, Example, panel, panel_sheet, save_png

CLASSES = ("sky", "road", "car")
PALETTE = np.array([[70, 130, 180], [128, 64, 128], [220, 20, 60]], np.uint8)
TILE = 60


def example(h=40, w=40, **changes):
    rng = np.random.default_rng(0)
    values = {
        "image": rng.integers(0, 256, (h, w, 3), dtype=np.uint8),
        "depth": rng.uniform(0.1, 0.9, (h, w)).astype(np.float32),
        "label": rng.integers(0, 3, (h, w)),
        "clusters": rng.integers(0, 3, (h, w)),
        "linear": rng.integers(0, 3, (h, w)),
    }
    return Example(**(values | changes))


def uniform(value, h=40, w=40):
    return np.full((h, w), value)


def columns_of(sheet, tile=TILE):
    return (sheet.width - 2 * MARGIN + GAP) // (tile + GAP)


def tile_pixels(sheet, column, columns, tile=TILE, y=None):
    """A strip from the middle of a tile of a one-row sheet (the rows between titles and legend)."""
    pixels = np.array(sheet)
    left = MARGIN + column * (tile + GAP)
    y = MARGIN + 35 + tile // 2 if y is None else y
    return pixels[y - 8 : y + 8, left + 2 : left + tile - 2].reshape(-1, 3)


def test_tiles_show_the_class_colours_of_label_clusters_and_linear():
    sheet = panel_sheet(
        [example(label=uniform(0), clusters=uniform(1), linear=uniform(2))], classes=CLASSES, palette=PALETTE, tile=TILE
    )
    assert columns_of(sheet) == 5
    for column, colour in ((2, 0), (3, 1), (4, 2)):
        assert (tile_pixels(sheet, column, 5) == PALETTE[colour]).all()


def test_clusters_take_the_colour_of_the_class_they_are_matched_with():
    settings = {"classes": CLASSES, "palette": PALETTE, "tile": TILE, "assignment": np.array([2, -1, 0, 1])}
    for cluster, colour in ((0, 2), (2, 0), (3, 1)):
        sheet = panel_sheet([example(clusters=uniform(cluster))], **settings)
        assert (tile_pixels(sheet, 3, 5) == PALETTE[colour]).all()
    striped = tile_pixels(panel_sheet([example(clusters=uniform(1))], **settings), 3, 5)
    assert {tuple(p) for p in striped.tolist()} == set(STRIPES)


def test_void_is_black_in_the_label():
    sheet = panel_sheet([example(label=uniform(-1))], classes=CLASSES, palette=PALETTE, tile=TILE)
    assert (tile_pixels(sheet, 2, 5) == 0).all()


def test_maps_keep_their_pixels_and_their_orientation():
    clusters = np.zeros((40, 40), int)
    clusters[:20, 20:] = 1  # upper right
    clusters[20:, :20] = 2  # lower left
    sheet = np.array(panel_sheet([example(clusters=clusters)], classes=CLASSES, palette=PALETTE, tile=40))
    top, left = MARGIN + 35, MARGIN + 3 * (40 + GAP)
    np.testing.assert_array_equal(sheet[top : top + 40, left : left + 40], PALETTE[clusters])


def test_columns_can_be_titled_otherwise():
    settings = {"classes": CLASSES, "palette": PALETTE, "tile": TILE}
    plain, named = (panel_sheet([example()], titles=t, **settings) for t in (None, {"linear": "With depth"}))
    different = (np.array(plain) != np.array(named)).any(2)
    rows, columns = np.nonzero(different)
    assert rows.max() < MARGIN + 35 and columns.min() >= MARGIN + 4 * (TILE + GAP) - GAP, (
        "the last column's title alone"
    )
    same = panel_sheet([example()], titles={"linear": "Linear probe"}, **settings)
    assert same.tobytes() == plain.tobytes()


def test_columns_without_content_are_left_out():
    assert columns_of(panel_sheet([example(label=None, linear=None)], n_clusters=3, tile=TILE)) == 3
    bare = example(label=None, linear=None, depth=None)
    assert columns_of(panel_sheet([bare], tile=TILE)) == 2
    # One example of several has depth: the column stays, and the others say "none".
    assert columns_of(panel_sheet([bare, example(label=None, linear=None)], tile=TILE)) == 3


def test_without_classes_clusters_have_colours_of_their_own():
    sheet = panel_sheet([example(label=None, linear=None, clusters=uniform(4))], n_clusters=6, tile=TILE)
    assert (tile_pixels(sheet, 2, 3) == class_palette(6)[4]).all()


@pytest.mark.parametrize(("h", "w"), [(40, 40), (30, 120), (200, 50), (600, 20), (1, 1), (7, 300)])
def test_any_aspect_ratio(h, w):
    sheet = panel_sheet([example(h, w), example()], classes=CLASSES, tile=TILE)
    assert columns_of(sheet) == 5
    row = max(1, round(h * min(TILE / w, 2 * TILE / h)))
    square = panel_sheet([example(), example()], classes=CLASSES, tile=TILE)
    assert sheet.height - square.height == row - TILE


def test_maps_of_another_resolution_fill_their_tile():
    sheet = panel_sheet([example(label=uniform(1, 7, 5), depth=uniform(0.5, 3, 3))], classes=CLASSES, palette=PALETTE,
                        tile=TILE)  # fmt: skip
    assert (tile_pixels(sheet, 2, 5) == PALETTE[1]).all()


def test_many_classes_flow_over_several_legend_lines_and_long_names_fit():
    names = [f"class with a rather long name {i}" * (1 + i % 2) for i in range(27)]
    few = panel_sheet([example()], classes=names[:3], tile=TILE)
    many = panel_sheet([example(name="folder/" * 40 + "photo.jpg")], classes=names, tile=TILE)
    assert many.width == few.width and many.height > few.height + 20 * 20


def test_every_class_is_in_the_legend_and_void_only_where_it_occurs():
    def legend_colours(sheet):
        return {tuple(c) for c in np.array(sheet)[MARGIN + 35 + TILE + 2 * GAP :].reshape(-1, 3).tolist()}

    plain = example(label=uniform(0), clusters=uniform(0), linear=uniform(0), depth=None)
    colours = legend_colours(panel_sheet([plain], classes=CLASSES, palette=PALETTE, tile=TILE))
    assert {tuple(c) for c in PALETTE.tolist()} <= colours and (0, 0, 0) not in colours
    void = dataclasses.replace(plain, label=uniform(-1))
    assert (0, 0, 0) in legend_colours(panel_sheet([void], classes=CLASSES, palette=PALETTE, tile=TILE))


def test_panel_is_a_sheet_of_one_row():
    e = example(name="photo")
    one = panel(e.image, e.clusters, depth=e.depth, label=e.label, linear=e.linear, name="photo", classes=CLASSES)
    assert one.tobytes() == panel_sheet([e], classes=CLASSES).tobytes()


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"label": uniform(3)}, {}, r"label holds ids 3..3, outside \[-1, 2\]"),
        ({"linear": uniform(-2)}, {}, "linear holds ids -2"),
        (
            {"clusters": uniform(4)},
            {"assignment": np.array([0, 1, 2, -1])},
            r"clusters holds ids 4..4, outside \[-1, 3\]",
        ),
        ({"clusters": uniform(0)[None]}, {}, r"clusters must be \[H, W\], got shape \(1, 40, 40\)"),
        ({"depth": np.zeros((0, 3))}, {}, r"depth must be \[H, W\]"),
        ({"image": np.zeros((4, 4, 3))}, {}, "expected uint8"),
        ({"image": np.zeros((4, 4), np.uint8)}, {}, "expected uint8"),
        ({}, {"palette": PALETTE[:2]}, r"palette has shape \(2, 3\)"),
        ({"clusters": uniform(5), "label": None, "linear": None}, {"classes": (), "n_clusters": 3}, "outside"),
    ],
)
def test_refuses_what_it_cannot_draw(changes, settings, message):
    with pytest.raises(ValueError, match=message):
        panel_sheet([example(name="bad.jpg", **changes)], **({"classes": CLASSES} | settings))


def test_refuses_an_empty_sheet():
    with pytest.raises(ValueError, match="at least one example"):
        panel_sheet([])


def test_depth_near_is_bright_and_metres_are_logarithmic():
    ramp = np.array([[1.0, 10.0, 100.0, np.inf, np.nan, 0.0]])
    colours = depth_colours(ramp, (1.0, 100.0, True))[0].astype(int)
    light = colours.sum(1)
    assert light[0] > light[1] > light[2] and (colours[2] == colours[3]).all()
    assert (colours[4:] == 160).all()
    # 10 m lies half-way between 1 m and 100 m: the colour of one half on the unit scale.
    np.testing.assert_array_equal(colours[1], depth_colours(np.array([[0.5]]), (0.0, 1.0, False))[0, 0])


def test_depth_scale_ignores_the_sky_and_finds_metres():
    near, far, metric = depth_scale([np.array([[2.0, np.inf]]), np.array([[30.0, np.nan]])], None)
    assert metric and 2 <= near < 3 and 29 < far <= 30
    assert depth_scale([np.array([[0.2, 0.8]])], None)[2] is False
    assert depth_scale([np.array([[0.2, 0.8]])], True)[2] is True
    assert depth_scale([], None) is None
    for flat in (np.full((2, 2), 0.5), np.full((2, 2), 7.0), np.full((2, 2), np.inf), np.zeros((2, 2))):
        assert np.isfinite(depth_colours(flat, depth_scale([flat], None)).sum())


def test_palette_is_stable_distinct_and_leaves_greys_free():
    full = class_palette(40)
    for n in (0, 1, 7, 27):
        np.testing.assert_array_equal(class_palette(n), full[:n])
    gaps = np.abs(full[:, None].astype(int) - full).sum(2)
    assert gaps[~np.eye(40, dtype=bool)].min() > 30
    assert (full.max(1).astype(int) - full.min(1)).min() > 20
    with pytest.raises(ValueError, match="must not be negative"):
        class_palette(-1)
    with pytest.raises(ValueError, match="can be told apart"):
        class_palette(10_000)


def test_png_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "panel.png"
    sheet = panel_sheet([example()], classes=CLASSES, tile=TILE)
    save_png(sheet, path)
    np.testing.assert_array_equal(np.array(Image.open(path)), np.array(sheet))
    before = path.read_bytes()

    class Broken(Image.Image):
        def save(self, target, **_):
            target.write_bytes(b"half a picture")
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        save_png(Broken(), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["panel.png"]


def test_two_tiles_side_by_side_show_the_same_maps():
    maps = {"label": uniform(0), "clusters": uniform(1), "linear": uniform(2)}
    settings = {"classes": CLASSES, "palette": PALETTE, "tile": TILE}
    wide = panel_sheet([example(**maps)] * 2, **settings)
    sheet = panel_sheet([example(**maps, name="a")] * 2, columns=2, **settings)
    assert columns_of(sheet) == 2 and columns_of(wide) == 5 and sheet.height > wide.height
    pixels = np.array(sheet)
    left, right = (pixels[:, MARGIN + i * (TILE + GAP) + TILE // 2] for i in range(2))
    runs = [[int((side == PALETTE[c]).all(-1).sum()) for c in range(3)] for side in (left, right)]
    assert runs == [[2 * TILE, 0, 2 * TILE], [0, 2 * TILE, 0]], "label and linear left, clusters right, twice"
    one = panel_sheet([example(**maps)], columns=9, **settings)
    assert (np.array(one) == np.array(panel_sheet([example(**maps)], **settings))).all(), "enough room: one line"


def test_every_tile_of_a_narrow_sheet_has_its_title(monkeypatch):
    written = []
    monkeypatch.setattr(
        "depthg.reporting.pictures.ImageDraw.ImageDraw.text", lambda self, at, text, *rest, **more: written.append(text)
    )
    panel_sheet([example()], classes=CLASSES, palette=PALETTE, tile=TILE, columns=2, titles={"linear": "B"})
    assert written[:5] == ["Image", "Depth", "Label", "Clusters", "B"]


def test_unknown_depth_is_grey_and_the_legend_says_so(monkeypatch):
    written, draw = [], ImageDraw.ImageDraw.text

    def text(self, at, words, *rest, **more):
        written.append(words)
        draw(self, at, words, *rest, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    depth = np.linspace(0.1, 0.9, 40)[:, None].repeat(40, 1)
    sheets, words = {}, {}
    for name, holes in (("whole", 0), ("holes", 20)):
        depth[:, :holes] = np.nan
        written.clear()
        sheets[name], words[name] = panel_sheet([example(depth=depth)], classes=CLASSES, tile=TILE), set(written)
    assert words["holes"] - words["whole"] == {"depth unknown"}
    left, right = np.split(tile_pixels(sheets["holes"], 1, 5).reshape(16, -1, 3), 2, axis=1)
    assert (left[:, :-3] == 160).all() and not (right[:, 3:] == 160).all(-1).any()
    assert not (tile_pixels(sheets["whole"], 1, 5) == 160).all(-1).any(), "no depth has this colour"
