"""Overlays: outlines in the pure colour, names in regions, a legend strip; crops from the clearest place."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from depthg.data.colours import class_palette
from depthg.inference import overlays
from depthg.inference.clear_crops import MOST, ClearCrops, clear_places
from depthg.inference.overlays import draw_outlines, labelled_overlay, overlay, pixels_of, region_places


@pytest.fixture
def halves():
    """A grey photo, 120 x 200, whose left half is cluster 0 and right half cluster 2."""
    ids = np.zeros((120, 200), np.uint8)
    ids[:, 100:] = 2
    return np.full((120, 200, 3), 100, np.uint8), ids


def test_an_outline_lies_inside_each_region_in_its_pure_colour(halves):
    image, ids = halves
    colours, drawn = class_palette(3), overlay(*halves, class_palette(3))
    plain = drawn.copy()
    draw_outlines(drawn, ids, colours, 3)
    assert (drawn[:, 97:100] == colours[0]).all() and (drawn[:, 100:103] == colours[2]).all()
    assert (drawn[:, :97] == plain[:, :97]).all() and (drawn[:, 103:] == plain[:, 103:]).all()
    one = overlay(image, ids * 0, colours)
    kept = one.copy()
    draw_outlines(one, ids * 0, colours, 3)
    assert (one == kept).all(), "a region that fills the photo has no outline"


def test_regions_are_found_at_their_widest_place(halves):
    _, ids = halves
    ids[5:7, 5:7] = 1  # too small for a name
    places = {value: (y, x, radius) for value, y, x, radius in region_places(ids)}
    assert set(places) == {0, 2}
    for value, centre in ((0, 50), (2, 150)):
        y, x, radius = places[value]
        assert abs(x - centre) <= 8 and 40 <= y <= 80 and 40 <= radius <= 56 and ids[y, x] == value
    ids[:, :100] = 2
    ids[:, 90:110] = 0
    assert sorted(value for value, *_ in region_places(ids)) == [0, 2, 2], "each connected region"


def test_names_that_fit_are_written_and_numbers_where_they_do_not(halves, monkeypatch):
    image, ids = halves
    written = []
    monkeypatch.setattr(
        overlays.ImageDraw.ImageDraw, "text", lambda self, at, text, *rest, **more: written.append(text)
    )
    names = ("road", "x", "a very long name of a class that fits nowhere")
    labelled_overlay(image, ids, class_palette(3), names)
    assert written == ["0 road 50%", f"2 {names[2]} 50%", "road", "2"]
    written.clear()
    labelled_overlay(image, ids, class_palette(3), ("cluster 0", "cluster 1", "cluster 2"))
    assert written == ["0 50%", "2 50%", "0", "2"]


def test_the_legend_lies_below_with_what_occurs_by_share(halves):
    image, ids = halves
    ids[:, 60:] = 2
    colours = class_palette(3)
    found = labelled_overlay(image, ids, colours, ("a", "b", "c"))
    assert found.width == 200 and found.height > 120
    strip = np.asarray(found)[120:]
    where = {i: np.argwhere((strip == colours[i]).all(-1)) for i in range(3)}
    assert len(where[1]) == 0 and len(where[0]) > 20 and where[2][:, 1].min() < where[0][:, 1].min()


def test_more_ids_than_a_palette_holds():
    ids = np.arange(300, dtype=np.uint16).repeat(64).reshape(120, 160)
    image, colours = np.zeros((120, 160, 3), np.uint8), class_palette(300)
    assert (overlay(image, ids, colours) == (colours >> 1)[ids]).all()
    assert (pixels_of(ids, 301) == np.bincount(ids.ravel(), minlength=301)).all()
    assert labelled_overlay(image, ids, colours, [f"cluster {i}" for i in range(300)]).width == 160


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (9, 500)])
def test_photos_of_any_size_and_names_of_any_kind(size):
    ids = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size) % 3
    names = ("two\nlines", "", "写真 & <b>")
    found = labelled_overlay(np.zeros((*size, 3), np.uint8), ids, class_palette(3), names)
    assert found.width == size[1] and found.height > size[0]


def scores_with_a_clear_place(row, column, margin=5.0):
    """Two clusters on 20 x 30 cells: 0 wins weakly everywhere, 1 around one place."""
    scores = np.zeros((2, 20, 30), np.float32)
    scores[0] = 0.1
    scores[1, row - 3 : row + 3, column - 3 : column + 3] = margin
    return scores


def test_the_clearest_place_is_where_the_margin_is_largest():
    margin, row, column = clear_places(scores_with_a_clear_place(6, 20))[1]
    assert (round(row * 20), round(column * 30)) == (6, 20) and margin == pytest.approx(4.9, abs=1e-5)
    assert set(clear_places(np.stack([np.ones((4, 4)), np.zeros((4, 4))]))) == {0}, "a cluster that wins nowhere"
    assert clear_places(np.ones((1, 4, 4))) == {}


def test_the_clearest_crops_are_kept_in_any_order_one_per_photo():
    image = np.zeros((200, 300, 3), np.uint8)
    image[:, :, 0] = 200
    ids = np.zeros((200, 300), np.uint8)
    ids[40:80, 180:220] = 1
    rng, kept = np.random.default_rng(0), []
    for _ in range(2):
        crops, reads = ClearCrops(class_palette(2)), []
        jobs = [(f"photo {n:02d}", scores_with_a_clear_place(6, 20, 1 + n)) for n in rng.permutation(20)]

        def offer(job, crops=crops, reads=reads):
            crops.offer(*job, lambda: reads.append(job[0]) or (image, ids))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(offer, jobs))
        kept.append(crops.all)
        assert len(reads) == len(set(reads)) <= 20
    assert kept[0] == kept[1] and [crop.photo for crop in kept[0][1]] == [
        f"photo {n}" for n in range(19, 19 - MOST, -1)
    ]
    crop = np.asarray(Image.open(io.BytesIO(kept[0][1][0].jpeg))).astype(int)
    assert crop.shape == (144, 144, 3) and np.abs(crop[60:80, 60:80] - (200, 0, 0)).max() < 12, "the photo itself"
    assert np.abs(crop[5:15, 5:15] - (206, 140, 140)).max() < 12, "what is of other clusters is faded"
