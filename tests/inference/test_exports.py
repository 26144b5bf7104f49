"""Files for annotation tools, read back as the tools do: pixel for pixel, whatever the order, names and sizes."""

import json
import xml.etree.ElementTree as ElementTree
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from PIL import Image
from scipy import ndimage

from depthg.data.brush_masks import decode_values
from depthg.data.classes import read_classes
from depthg.data.colours import class_palette
from depthg.data.files import read_label
from depthg.inference.exports.common import clearness, distinct_colours, label_names, stems
from depthg.inference.exports.formats import FORMATS, Exports, formats_of
from depthg.inference.exports.masks import object_colours
from depthg.inference.exports.polygons import polygons
from depthg.inference.exports.yolo import FEWEST_PIXELS

VOID = 255
NAMES = ("road", "a:b, c", "road", "<q> \"x\" & 'y'", "straße 東", "background", "# void")


def blobs(height, width, n, seed=0, void=True):
    """Ids of smooth regions, with a rectangle and scattered pixels of void."""
    rng = np.random.default_rng(seed)
    ids = ndimage.gaussian_filter(rng.normal(size=(n, height, width)), (0, 3, 3)).argmax(0)
    if void:
        ids[height // 4 : height // 2, : width // 3] = VOID
        ids[rng.random((height, width)) < 0.01] = VOID
    return ids.astype(np.uint8)


PHOTOS = {
    "a.jpg": blobs(40, 57, 7), "sub/b c.png": blobs(33, 20, 7, 1), "one.png": np.array([[3]], np.uint8),
    "none.png": np.full((5, 4), VOID, np.uint8), "sub/é%#.JPG": blobs(64, 64, 3, 2, void=False),
}  # fmt: skip


def export(out, *names, photos=PHOTOS, labels=NAMES, colours=None, order=1, root=Path("/photos")):
    """What the command does, in several threads; ``order=-1``: the last photo comes first."""
    sources = [SimpleNamespace(photo=root / relative, relative=relative) for relative in photos]
    colours = class_palette(len(labels)) if colours is None else colours
    exports = Exports([[name] for name in names], out, sources, labels, colours, Path("runs/mine"))
    scores = np.random.default_rng(0).random((len(labels), 3, 3))
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda s: exports.add(s.photo, photos[s.relative], scores), sources[::order]))
    return exports.finish(), scores


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def same_classes(label, ids, n):
    """Whether labels are ids, and -1 what is no id."""
    return (label == np.where(ids < n, ids.astype(int), -1)).all()


def test_the_order_of_photos_changes_nothing_and_all_files_are_announced(tmp_path):
    pytest.importorskip("pycocotools")
    export(tmp_path / "1", *FORMATS)
    export(tmp_path / "2", *FORMATS, order=-1)
    written = content(tmp_path / "1")
    assert written == content(tmp_path / "2")
    sources = [SimpleNamespace(photo=Path(relative), relative=relative) for relative in PHOTOS]
    announced = Exports([[*FORMATS]], tmp_path, sources, NAMES, class_palette(7), Path("r")).files
    assert sorted(path.relative_to(tmp_path).as_posix() for path in announced) == sorted(written)


def test_coco_is_read_by_its_own_reader(tmp_path, capsys):
    reader = pytest.importorskip("pycocotools.coco")
    export(tmp_path, "coco")
    coco = reader.COCO(tmp_path / "coco.json")
    assert sorted(coco.cats) == [*range(1, 8)] and len({cat["name"] for cat in coco.cats.values()}) == 7
    assert [cat["color"] for cat in coco.cats.values()] == class_palette(7).tolist()
    images = coco.loadImgs(coco.getImgIds())
    assert {image["file_name"]: (image["height"], image["width"]) for image in images} == {
        name: ids.shape for name, ids in PHOTOS.items()
    }
    for image in images:
        ids, annotations = PHOTOS[image["file_name"]], coco.loadAnns(coco.getAnnIds(image["id"]))
        found = np.full(ids.shape, VOID)
        for annotation in annotations:
            mask = coco.annToMask(annotation).astype(bool)
            y, x = np.nonzero(mask)
            assert annotation["area"] == mask.sum() and not annotation["iscrowd"]
            assert annotation["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
            found[mask] = annotation["category_id"] - 1
        assert (found == ids).all() and len(annotations) == len(set(ids.ravel().tolist()) - {VOID})


def rasterised(points, size):
    """bool [H, W]: pixels whose centre is inside, with coordinates relative to the size."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    centres = np.stack([x.ravel() / size[1], y.ravel() / size[0]], 1)
    return Outline(np.vstack([points, points[:1]])).contains_points(centres).reshape(size)


@given(st.integers(1, 24), st.integers(1, 24), st.floats(0, 1), st.integers(0, 2**32 - 1), st.booleans())
def test_polygons_are_exact_and_count_their_pixels(height, width, share, seed, smooth):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < share
    if smooth:
        mask = ndimage.gaussian_filter(rng.normal(size=(height, width)), 1.5) > share - 0.5
    found = np.zeros(mask.shape, int)
    for points, pixels in polygons(mask):
        inside = rasterised(points / (width, height), mask.shape)
        assert inside.sum() == pixels and len(points) > 3
        assert points.min() >= 0 and (points.max(0) <= (width, height)).all()
        found += inside
    assert (found == mask).all()
    sizes = [(pixels, len(points) > 0) for points, pixels in polygons(mask, 5)]
    assert sizes == [(pixels, pixels >= 5) for _, pixels in polygons(mask)]


def test_polygons_of_rings_in_rings_and_bridges_past_other_holes():
    mask = np.ones((41, 41), bool)
    for inset in range(2, 20, 2):
        mask[inset : 41 - inset, inset : 41 - inset] ^= True
    mask[36:39:2, 2:39:2] = False
    lines = list(polygons(mask))
    assert (sum(rasterised(points / 41, mask.shape) for points, _ in lines) == mask).all()
    assert sorted(pixels for _, pixels in lines)[-1] == ndimage.label(mask)[0].ravel().tolist().count(1)
    assert len(next(polygons(np.ones((100, 50), bool)))[0]) == 8, "four cut corners, straight sides without points"


def test_yolo_is_exact_but_for_the_smallest_regions(tmp_path):
    [line], _ = export(tmp_path, "yolo")
    data = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text(encoding="utf-8"))
    assert list(data["names"]) == [*range(7)] and len(set(data["names"].values())) == 7
    lost = pixels = 0
    for name, ids in PHOTOS.items():
        rows = (tmp_path / "yolo" / "labels" / name).with_suffix(".txt").read_text().splitlines()
        found = np.full(ids.shape, VOID)
        for number, *parts in map(str.split, rows):
            points = np.array(parts, float).reshape(-1, 2)
            inside = rasterised(points, ids.shape)
            assert points.min() >= 0 and points.max() <= 1 and inside.sum() >= FEWEST_PIXELS
            assert (found[inside] == VOID).all()
            found[inside] = int(number)
        differs = found != ids
        assert (found[differs] == VOID).all()
        for value in set(ids[differs].tolist()):
            regions, count = ndimage.label(differs & (ids == value))
            lost, pixels = lost + count, pixels + int((regions > 0).sum())
            assert np.bincount(regions.ravel())[1:].max() < FEWEST_PIXELS
    assert lost and f"; {lost} regions below {FEWEST_PIXELS} pixels are left out ({pixels} pixels)" in line


def test_voc_is_read_as_labels(tmp_path):
    export(tmp_path, "voc")
    folder = tmp_path / "voc"
    known = read_classes(folder / "labelmap.txt")
    assert len(known.names) == 7 and known.names[4] == "straße 東" and known.names[0] != known.names[2]
    stems = (folder / "ImageSets" / "Segmentation" / "default.txt").read_text(encoding="utf-8").splitlines()
    assert stems == [name.rpartition(".")[0] for name in PHOTOS]
    for stem, ids in zip(stems, PHOTOS.values(), strict=True):
        path = folder / "SegmentationClass" / f"{stem}.png"
        assert same_classes(read_label(path, known.table, colours=known.colours), ids, 7)
        image = Image.open(path)
        assert image.mode == "P" and (np.asarray(image) == np.where(ids == VOID, 0, ids.astype(int) + 1)).all()


@pytest.mark.parametrize("n", [255, 256, 300])
def test_many_clusters(tmp_path, n):
    """With 256 clusters the id 255 is a cluster and 65535 is void."""
    pytest.importorskip("pycocotools")
    ids = np.arange(320).repeat(8).reshape(20, 128).astype(np.uint16)
    ids[ids >= n] = 65535
    names, photos = [f"cluster {i}" for i in range(n)], {"a.png": ids}
    export(tmp_path, "voc", "coco", "labelstudio", "yolo", photos=photos, labels=names)
    known = read_classes(tmp_path / "voc" / "labelmap.txt")
    path = tmp_path / "voc" / "SegmentationClass" / "a.png"
    assert Image.open(path).mode == ("P" if n == 255 else "RGB") and known.names == tuple(names)
    assert same_classes(read_label(path, known.table, colours=known.colours), ids, n)
    assert len(json.loads((tmp_path / "coco.json").read_text())["annotations"]) == n
    [task] = json.loads((tmp_path / "labelstudio.json").read_text())
    assert len(task["predictions"][0]["result"]) == n
    assert (tmp_path / "yolo" / "labels" / "a.txt").read_text().count("\n") == n
    if n > 255:
        with pytest.raises(ValueError, match=f"cvat holds 255 clusters, the run has {n}; pass --export voc"):
            export(tmp_path, "cvat", photos=photos, labels=names)
    else:
        export(tmp_path, "cvat", photos=photos, labels=names)


def test_cvat_has_what_its_import_reads(tmp_path):
    export(tmp_path, "cvat")
    with zipfile.ZipFile(tmp_path / "cvat.zip") as archive:
        archive.extractall(tmp_path / "zip")
    folder = tmp_path / "zip"
    lines = [line for line in (folder / "labelmap.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    rows = [line.split(":") for line in lines]
    assert all(len(row) == 4 for row in rows) and rows[0] == ["background", "0,0,0", "", ""]
    colours = {tuple(map(int, row[1].split(","))): number for number, row in enumerate(rows)}
    assert len(colours) == len({row[0] for row in rows}) == 8
    raw = json.loads((tmp_path / "cvat_labels.json").read_text())
    assert [(label["name"], label["color"]) for label in raw] == [
        (name, "#" + bytes(map(int, rgb.split(","))).hex()) for name, rgb, *_ in rows[1:]
    ]
    numbers = {tuple(colour): number for number, colour in enumerate(object_colours().tolist())}
    assert len(numbers) == 256 and numbers[128, 0, 0] == 1 and numbers[224, 224, 192] == 255
    stems = (folder / "ImageSets" / "Segmentation" / "default.txt").read_text(encoding="utf-8").splitlines()
    for stem, ids in zip(stems, PHOTOS.values(), strict=True):
        images = [Image.open(folder / kind / f"{stem}.png") for kind in ("SegmentationClass", "SegmentationObject")]
        assert [image.mode for image in images] == ["RGB", "RGB"]
        classes, objects = (
            np.array([known[tuple(pixel)] for pixel in np.asarray(image).reshape(-1, 3).tolist()]).reshape(ids.shape)
            for image, known in zip(images, (colours, numbers), strict=True)
        )
        assert (classes == np.where(ids == VOID, 0, ids.astype(int) + 1)).all()
        assert ((objects == 0) == (classes == 0)).all()
        assert len({*zip(objects.ravel().tolist(), classes.ravel().tolist(), strict=True)}) == len(np.unique(objects))


def test_label_studio_has_tasks_and_an_interface(tmp_path):
    [line], scores = export(tmp_path, "labelstudio")
    view = ElementTree.parse(tmp_path / "labelstudio.xml").getroot()
    brush, labels = view.find("BrushLabels"), view.findall("BrushLabels/Label")
    names = [label.get("value") for label in labels]
    assert len(set(names)) == 7 and NAMES[3] in names
    assert [label.get("background") for label in labels] == [f"#{bytes(c).hex()}" for c in class_palette(7)]
    tasks = json.loads((tmp_path / "labelstudio.json").read_text())
    assert [task["data"]["photo"] for task in tasks] == [*PHOTOS]
    for task, ids in zip(tasks, PHOTOS.values(), strict=True):
        address, [prediction] = urlsplit(task["data"]["image"]), task["predictions"]
        assert address.path == "/data/local-files/"
        assert parse_qs(address.query)["d"] == [f"photos/{task['data']['photo']}"]
        assert prediction["model_version"] == "mine" and prediction["score"] == round(clearness(scores), 6)
        found = np.full(ids.shape, VOID)
        for result in prediction["result"]:
            assert (result["from_name"], result["to_name"]) == (brush.get("name"), brush.get("toName"))
            assert (result["original_height"], result["original_width"]) == ids.shape
            alpha = decode_values(result["value"]["rle"], ids.shape)
            assert set(np.unique(alpha).tolist()) <= {0, 255}
            found[alpha == 255] = names.index(*result["value"]["brushlabels"])
        assert (found == ids).all()
        assert len({result["id"] for result in prediction["result"]}) == len(prediction["result"])
    assert "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=/, and a local storage /photos" in line


def test_label_studio_gets_paths_without_dots(tmp_path):
    photos = {f"{number}.png": PHOTOS["one.png"] for number in range(3)}
    [line], _ = export(tmp_path, "labelstudio", photos=photos, root=Path("/x/../photos/./sub"))
    tasks = json.loads((tmp_path / "labelstudio.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [f"/data/local-files/?d=sub/{n}.png" for n in range(3)]
    assert "DOCUMENT_ROOT=/photos, and a local storage /photos/sub" in line


def test_the_score_is_the_margin_of_the_clearest_cluster():
    scores = np.array([[[0.9, 0.1]], [[0.5, 0.4]], [[-1.0, 0.3]]])
    assert clearness(scores) == pytest.approx((0.4 + 0.1) / 2)
    assert clearness(scores[:1]) == pytest.approx(0.5)


def test_names_are_unique_and_one_line():
    assert label_names(["sky", "road", "sky", "sky 2", " a\n\tb\x00 ", "", "\udcff"]) == (
        "sky 0", "road", "sky 2 2", "sky 2", "a b", "cluster 5", "cluster 6",
    )  # fmt: skip
    assert label_names(["Void", "x"], ["void"]) == ("Void 0", "x")
    given = ["sky", "sky 1", "sky", "SKY 1", "sky 2", "sky 1 3"]
    assert len({name.casefold() for name in label_names(given)}) == len(given)


def test_stems_are_unique_where_case_is_ignored():
    assert stems(["x/a.jpg", "x/A.png", "b.tif", "c\nd.png"]) == ["x/a.jpg", "x/A.png", "b", "c_d"]
    assert len({stem.casefold() for stem in stems(["a.jpg", "a.png", "a.jpg.tif", "a\t.b", "a_.c"])}) == 5


def test_colours_with_a_meaning_and_equal_ones_are_replaced(tmp_path):
    colours = np.array([[0, 0, 0], [9, 9, 9], [9, 9, 9], [224, 224, 192], [1, 2, 3], [0, 0, 0], [5, 5, 5]], np.uint8)
    found = distinct_colours(colours, [(0, 0, 0)])
    assert len(np.unique(found, axis=0)) == 7 and (found[[1, 3, 4, 6]] == colours[[1, 3, 4, 6]]).all()
    many = distinct_colours(np.zeros((3000, 3), np.uint8))
    assert len(np.unique(many, axis=0)) == 3000
    export(tmp_path, "voc", colours=colours)
    known = read_classes(tmp_path / "voc" / "labelmap.txt")
    path = tmp_path / "voc" / "SegmentationClass" / "a.png"
    assert same_classes(read_label(path, known.table, colours=known.colours), PHOTOS["a.jpg"], 7)


def test_formats_are_words_or_lists(monkeypatch):
    assert formats_of("yolo, voc,cvat") == ["yolo", "voc", "cvat"]
    with pytest.raises(ValueError, match="'png' is not one of the formats coco, yolo, voc, cvat, labelstudio"):
        formats_of("yolo,png")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"coco needs pycocotools: python -m pip install 'depthg\[export\]'"):
        formats_of("coco")
    assert formats_of("labelstudio") == ["labelstudio"]


def test_a_photo_is_never_replaced(tmp_path):
    photo = "voc/SegmentationClass/a.png"
    with pytest.raises(ValueError, match="is one of the photos and would be replaced"):
        export(tmp_path, "voc", photos={photo: PHOTOS["a.jpg"], "a.jpg": PHOTOS["a.jpg"]}, root=tmp_path)


def test_without_any_photo_files_are_empty_lists(tmp_path):
    """All photos were unreadable."""
    pytest.importorskip("pycocotools")
    sources = [SimpleNamespace(photo=Path("/x/a.png"), relative="a.png")]
    exports = Exports([[*FORMATS]], tmp_path, sources, NAMES, class_palette(7), Path("r"))
    exports.finish()
    assert json.loads((tmp_path / "coco.json").read_text())["images"] == []
    assert json.loads((tmp_path / "labelstudio.json").read_text()) == []
    assert not list(tmp_path.rglob("*.png")) and not (tmp_path / "yolo" / "labels").exists()
    assert (tmp_path / "voc" / "ImageSets" / "Segmentation" / "default.txt").read_text() == ""
