"""GeoTIFFs: read by rows to the bytes of the usual readers, and segmented to GeoTIFFs of the same place."""

import json
import math
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from depthg.data import geotiff, raster_rows
from depthg.data.errors import DataError
from depthg.data.files import read_image
from depthg.data.geotiff import has_place, is_geotiff, tiff_tags
from depthg.data.raster_rows import ROWS, RasterRows, WholeRows
from depthg.data.reading import Reading
from depthg.inference import raster_files
from depthg.inference.exports.formats import FORMATS
from depthg.inference.overlays import labelled_overlay
from depthg.inference.raster_files import Holes, IdRows, ThinScores, new_raster, no_data_id
from depthg.inference.segmenter import Segmenter
from depthg.predict import main

rasterio = pytest.importorskip("rasterio")
from rasterio.control import GroundControlPoint  # noqa: E402
from rasterio.crs import CRS  # noqa: E402
from rasterio.transform import Affine, from_origin  # noqa: E402
from rasterio.windows import Window  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
HERE = from_origin(500_000, 5_400_000, 0.5, 0.5)


@pytest.fixture(autouse=True)
def one_thread():
    """The network's last bits depend on the number of threads, which differs between small photos and large ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scene(height, width, bands=3, seed=0):  # uint8 [bands, H, W]
    rng = np.random.default_rng(seed)
    layers = [Image.fromarray(rng.integers(0, 256, (9, 12), dtype=np.uint8)) for _ in range(bands)]
    return np.stack([np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC)) for layer in layers])


def write(path, array, **options):  # [bands, H, W]
    options = {"crs": "EPSG:32632", "transform": HERE, **options}
    path.parent.mkdir(parents=True, exist_ok=True)
    gcps, crs = options.pop("gcps", None), options["crs"]
    if gcps:
        del options["crs"], options["transform"]
    with rasterio.open(
        path, "w", driver="GTiff", height=array.shape[1], width=array.shape[2], count=len(array), dtype=array.dtype,
        **options,
    ) as file:  # fmt: skip
        if gcps:
            file.gcps = gcps, CRS.from_string(crs)
        file.write(array)
    return path


def read(path):
    with rasterio.open(path) as file:
        return file.read(1)


def predict(run, photos, out, *options, status=0):
    arguments = [str(run), str(photos), "--out", str(out), "--device", "cpu", *options]
    assert main(arguments) == status
    return json.loads((out / "legend.json").read_text())


def rows_of(path, reading):
    with raster_rows.raster_rows(path, reading) as rows:
        starts = range(0, rows.size[0], ROWS)
        parts = [rows.read(start, min(start + ROWS, rows.size[0])) for start in starts]
        holes = [np.zeros((len(rgb), rows.size[1]), bool) if part is None else part for rgb, part in parts]
        return np.concatenate([rgb for rgb, _ in parts]), np.concatenate(holes), type(rows)


# ---- pixels


def stored(kind, bands):
    rng, size = np.random.default_rng(bands), (bands, 300, 40)
    if kind[0] != "f":
        top = {"uint8": 256, "int16": 30_000}.get(kind, 60_000)
        array = rng.integers(0, top, size).astype(kind)
    else:
        array = rng.uniform(0, 200, size).astype(kind)
        array[:, :140] /= 400  # alone these would have the range 0..1
        array[:, 3, 5], array[0, 7, 8] = np.nan, -9999
    array[:, 200], array[0, 201] = 7, 7
    return array


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "uint32", "int32", "float32", "float64"])
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5])
def test_rows_are_the_pixels_of_the_usual_readers(tmp_path, kind, bands):
    pytest.importorskip("tifffile")
    colours = [{}] + ([{"photometric": "RGB"}] if bands > 2 else [])
    colours += [{**more, "alpha": "yes"} for more in colours]
    readings = [Reading(), Reading(range="0,30000"), Reading(bands=(1,)), Reading(bands=(1,), range="0,120")]
    readings += [Reading(bands=(3, 2, 1), range="10,40000")] if bands > 2 else []
    seen = set()
    for more in colours:
        for flag in (None, 7):
            path = write(tmp_path / "a.tif", stored(kind, bands), nodata=flag, **more)
            for reading in readings:
                found, holes, how = rows_of(path, reading)
                seen.add(how)
                assert (found == read_image(path, reading)).all(), (more, flag, reading)
                opaque = not more.get("alpha")
                assert holes[200].all() == (flag == 7) or not opaque
                if opaque and kind[0] == "f" and reading.bands != (1,):
                    assert holes[3, 5] and holes[7, 8] and not holes[5].any()
    assert RasterRows in seen


@pytest.mark.parametrize(
    "options",
    [{"compress": "lzw"}, {"compress": "deflate", "predictor": 2}, {"BIGTIFF": "YES"}, {"ENDIANNESS": "BIG"},
     {"tiled": True, "blockxsize": 64, "blockysize": 32, "interleave": "band"}, {"compress": "jpeg"}],
)  # fmt: skip
def test_rows_of_every_layout(tmp_path, options):
    path = write(tmp_path / "a.tif", scene(301, 149), **options)
    found, _, how = rows_of(path, Reading())
    assert how is RasterRows and (found == read_image(path)).all()


def test_kinds_that_rasterio_shows_otherwise_are_read_as_ever(tmp_path):
    for options in ({"photometric": "CMYK"}, {"photometric": "YCBCR", "compress": "jpeg"}):
        bands = 4 if options["photometric"] == "CMYK" else 3
        path = write(tmp_path / "a.tif", scene(100, 60, bands), **options)
        found, _, how = rows_of(path, Reading())
        assert how is WholeRows and (found == read_image(path)).all()
    known = found
    found, _, how = rows_of(path, Reading(max_pixels=5999))
    differences = [np.abs(pixels.astype(int) - scene(100, 60).transpose(1, 2, 0)).mean() for pixels in (found, known)]
    assert how is RasterRows and differences[0] < 1.5 * differences[1], "up-sampled in another way"
    path = write(tmp_path / "b.tif", scene(40, 30, 1), photometric="PALETTE")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {i: (255 - i, i, 9) for i in range(256)})
    found, _, how = rows_of(path, Reading())
    assert how is WholeRows and (found == read_image(path)).all()


def test_pixels_without_data_of_8_bits(tmp_path):
    array = scene(60, 40) // 2 + 1
    array[:, :10], array[0, 20] = 0, 0
    _, holes, _ = rows_of(write(tmp_path / "a.tif", array, nodata=0), Reading())
    assert holes[:10].all() and not holes[10:].any(), "one band alone may hold the value"
    assert not rows_of(write(tmp_path / "b.tif", array), Reading())[1].any()
    opacity = np.full((1, 60, 40), 255, np.uint8)
    opacity[:, 50:] = 0
    path = write(tmp_path / "c.tif", np.concatenate([array, opacity]), photometric="RGB", alpha="yes")
    for reading in (Reading(), Reading(bands=(3, 2, 1))):
        _, holes, _ = rows_of(path, reading)
        assert holes[50:].all() and not holes[:50].any()
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = write(tmp_path / "d.tif", array)
        with rasterio.open(path, "r+") as file:
            file.write_mask(opacity[0] > 0)
    _, holes, _ = rows_of(path, Reading())
    assert holes[50:].all() and not holes[:50].any()


# ---- which files


def test_files_that_have_a_place(tmp_path):
    array = scene(40, 30)
    plain = write(tmp_path / "plain.tif", array, crs=None, transform=None)
    assert not has_place(plain) and not is_geotiff(plain)
    for name, options in {
        "crs": {"transform": None}, "transform": {"crs": None}, "both": {}, "big": {"BIGTIFF": "YES"},
        "other": {"ENDIANNESS": "BIG"},
    }.items():  # fmt: skip
        path = write(tmp_path / f"{name}.tif", array, **options)
        assert has_place(path) and is_geotiff(path), name
    (tmp_path / "text.tif").write_text("no image")
    assert tiff_tags(tmp_path / "text.tif") == {} == tiff_tags(tmp_path / "none.tif") == tiff_tags(tmp_path)
    (tmp_path / "short.tif").write_bytes((tmp_path / "both.tif").read_bytes()[:12])
    assert not is_geotiff(tmp_path / "short.tif")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.tif")
        assert not is_geotiff(tmp_path / "pipe.tif")


def test_what_is_no_tiff_is_refused(tmp_path):
    path = write(tmp_path / "a.tif", scene(40, 30))
    virtual = tmp_path / "virtual.tif"
    virtual.write_text(
        '<VRTDataset rasterXSize="30" rasterYSize="40"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{path}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        "</VRTRasterBand></VRTDataset>"
    )
    with rasterio.open(virtual) as file:
        assert file.driver == "VRT"
    for name in (virtual, tmp_path / "none.tif", tmp_path, "/vsimem/a.tif", f"zip://{path}", f"GTIFF_DIR:1:{path}"):
        with geotiff.environment(), pytest.raises(DataError, match="cannot read"), geotiff.opened(name):
            pass


def test_files_that_cannot_be_read_are_named(shared_run, tmp_path, capsys):
    photos = tmp_path / "photos"
    write(photos / "good.tif", scene(90, 70))
    whole = write(photos / "cut.tif", scene(300, 200)).read_bytes()
    (photos / "cut.tif").write_bytes(whole[:40_000])
    (photos / "text.tif").write_text("no image")
    write(photos / "waves.tif", np.zeros((1, 20, 30), np.complex64))
    write(photos / "wide.tif", np.zeros((1, 20, 30), np.int8))
    legend = predict(shared_run, photos, tmp_path / "out", "--no-crf", status=1)
    told = capsys.readouterr().err
    for name in ("cut.tif", "text.tif", "waves.tif"):
        assert sum(name in line for line in legend["failed"]) == 1 and name in told
    assert "complex64" in told and "on_error" not in told
    assert (tmp_path / "out" / "ids" / "good.tif").is_file()
    assert not list((tmp_path / "out").rglob(".partial*")) and not (tmp_path / "out" / "ids" / "cut.tif").exists()
    assert sorted(path.name for path in photos.iterdir()) == sorted(
        ["good.tif", "cut.tif", "text.tif", "waves.tif", "wide.tif"]
    )


def test_a_file_without_bands_is_refused(tmp_path):
    tags = {256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: 8, 277: 0, 278: 4, 279: 16, 34735: 1}
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags.items())
    path = tmp_path / "a.tif"
    path.write_bytes(struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(20))
    assert is_geotiff(path)
    with pytest.raises(DataError, match=r"a\.tif"):
        rows_of(path, Reading())


def test_parts_that_do_not_fit_are_refused(tmp_path):
    path = write(tmp_path / "a.tif", scene(600, 50), tiled=True, blockxsize=64, blockysize=640)
    with pytest.raises(DataError, match=r"parts of 64 x 640 pixels .* tiles"):
        rows_of(path, Reading(max_pixels=2100))
    path = write(tmp_path / "b.tif", scene(600, 64), tiled=True, blockxsize=64, blockysize=64)  # of more pixels
    assert rows_of(path, Reading(max_pixels=2100))[0].shape == (600, 64, 3)
    with pytest.raises(DataError, match=r"it has 3 bands, but data.bands=\[4\]"):
        rows_of(path, Reading(bands=(4,)))


# ---- files of a prediction


RASTERS = {
    "rgb": (lambda: scene(301, 149), {}),
    "deep": (lambda: scene(301, 149).astype(np.uint16) * 12, {}),
    "bands": (lambda: scene(301, 149, 5), {"interleave": "band"}),
    "floats": (lambda: with_holes(scene(301, 149, 1).astype(np.float32) / 9), {}),
}
READINGS = {"deep": "data.range=0,3000", "bands": "data.bands=[5,2,4]", "floats": "data.range=2,25"}


def with_holes(array):
    array[:, 40:90, 30:60], array[:, 200] = np.nan, -9999
    return array


def settings_of(kind):
    name, _, value = READINGS.get(kind, "").removeprefix("data.").partition("=")
    return Reading(**({name: tuple(json.loads(value)) if name == "bands" else value} if name else {}))


@pytest.fixture
def reads(monkeypatch):
    """Sets how the run reads files."""

    def chosen(reading):
        monkeypatch.setattr(Reading, "of", classmethod(lambda cls, data: reading))

    return chosen


@pytest.mark.parametrize("kind", RASTERS)
@pytest.mark.parametrize("window", ["64", "resize"])
@pytest.mark.parametrize("crf", ["--crf", "--no-crf"])
@pytest.mark.parametrize("whole", [0, 2**24])
def test_ids_of_a_raster_are_those_of_the_array(shared_run, tmp_path, reads, kind, window, crf, whole, monkeypatch):
    monkeypatch.setattr(raster_files, "WHOLE", whole)
    make, options = RASTERS[kind]
    path = write(tmp_path / "photos" / f"{kind}.tif", make(), tiled=True, blockxsize=64, blockysize=64, **options)
    reads(settings_of(kind))
    more = ["--window", window, "--overlay", "png", "--plain", "--probabilities", crf]
    legend = predict(shared_run, path.parent, tmp_path / "out", *more)
    segmenter = Segmenter.load(shared_run, device="cpu", window=window if window == "resize" else int(window))
    pixels = read_image(path, segmenter.reading) if kind != "bands" else make()[[4, 1, 3]].transpose(1, 2, 0)
    if kind == "deep":
        assert (pixels == np.rint(make() * np.float32(255 / 3000)).clip(0, 255).transpose(1, 2, 0)).all()
    expected = segmenter.predict(np.ascontiguousarray(pixels), crf=crf == "--crf", probabilities=True)
    ids = read(tmp_path / "out" / "ids" / f"{kind}.tif")
    holes = np.zeros(ids.shape, bool)
    if kind == "floats":
        holes[40:90, 30:60] = holes[200] = True
    assert (ids == np.where(holes, 255, expected.ids)).all() and ids.dtype == np.uint8
    with np.load(tmp_path / "out" / "probabilities" / f"{kind}.npz") as file:
        assert (file["probabilities"] == expected.probabilities.astype(np.float16)).all()
    counts = np.bincount(expected.ids[~holes], minlength=11)
    shares = {str(i): pytest.approx(count / counts.sum(), abs=1e-6) for i, count in enumerate(counts) if count}
    (entry,) = legend["photos"]
    assert entry["share"] == shares and entry["no_data"] == 255 and f"ids/{kind}.tif" in entry["files"]
    drawn = np.array(Image.open(tmp_path / "out" / "overlay" / f"{kind}.png"))
    assert (drawn[holes] == 0).all()
    assert (drawn == ((segmenter.colours[expected.ids] >> 1) + (pixels >> 1)) * ~holes[..., None]).all()


GCPS = [GroundControlPoint(row, column, 7 + column / 9000, 50 - row / 9000, 0)
        for row, column in ((0, 0), (0, 70), (90, 0), (90, 70), (44, 31))]  # fmt: skip
PLACES = {
    "north": {},
    "turned": {"transform": Affine(0.4, 0.3, 5e5, 0.3, -0.4, 5.4e6)},
    "gcps": {"gcps": GCPS, "crs": "EPSG:4326"},
    "no_crs": {"crs": None},
    "no_transform": {"transform": None},
    "own": {"crs": "+proj=laea +lat_0=12 +lon_0=34 +datum=WGS84 +units=m"},
}


@pytest.mark.parametrize("place", PLACES)
def test_ids_lie_where_the_raster_lies(shared_run, tmp_path, place):
    path = write(tmp_path / "photos" / "a.tif", scene(90, 70), **PLACES[place])
    predict(shared_run, path.parent, tmp_path / "out", "--no-crf")
    with rasterio.open(path) as photo, rasterio.open(tmp_path / "out" / "ids" / "a.tif") as ids:
        assert ids.crs == photo.crs and ids.transform == photo.transform and ids.shape == photo.shape
        points, crs = photo.gcps
        assert [p.asdict() for p in ids.gcps[0]] == [p.asdict() for p in points] and ids.gcps[1] == crs
        assert len(points) == (5 if place == "gcps" else 0)
        assert ids.nodata == 255 and ids.count == 1 and ids.profile["tiled"] and ids.profile["compress"] == "deflate"
        assert ids.block_shapes == [(256, 256)]
        table = ids.colormap(1)
    colours = Segmenter.load(shared_run, device="cpu").colours
    assert [table[i][:3] for i in range(11)] == [tuple(colour) for colour in colours.tolist()]
    assert [p.name for p in path.parent.iterdir()] == ["a.tif"], "nothing is written beside the photos"
    assert {p.name for p in (tmp_path / "out").rglob("a.*")} == {"a.tif", "a.jpg"}


def test_rpcs_are_kept(shared_run, tmp_path):
    from rasterio.rpc import RPC

    terms = [[float(k == place) + k / 64 for k in range(20)] for place in range(4)]
    rpcs = RPC(100, 1, 50, 0.5, *terms[:1], terms[1], 45, 50, 7, 0.5, *terms[2:], 35, 40, 1.5, 2.5)
    path = write(tmp_path / "photos" / "a.tif", scene(90, 70), crs=None, transform=None)
    with rasterio.open(path, "r+") as file:
        file.rpcs = rpcs
    predict(shared_run, path.parent, tmp_path / "out", "--no-crf")
    with rasterio.open(path) as photo, rasterio.open(tmp_path / "out" / "ids" / "a.tif") as ids:
        assert photo.rpcs is not None and ids.rpcs == photo.rpcs


def test_a_raster_that_is_read_as_a_whole(shared_run, tmp_path):
    path = write(tmp_path / "photos" / "a.tif", scene(150, 90, 4), photometric="CMYK")
    predict(shared_run, path.parent, tmp_path / "out", "--no-crf")
    expected = Segmenter.load(shared_run, device="cpu").predict(path).ids
    assert (read(tmp_path / "out" / "ids" / "a.tif") == expected).all()


def test_files_beside_a_raster_are_not_read(shared_run, tmp_path):
    path = write(tmp_path / "photos" / "a.tif", scene(90, 70))
    bare = write(tmp_path / "photos" / "b.tif", scene(90, 70), crs=None, transform=None)
    bare.with_suffix(".tfw").write_text("1\n0\n0\n-1\n5\n6\n")
    path.with_name("a.tif.aux.xml").write_text("<PAMDataset><SRS>EPSG:4326</SRS></PAMDataset>")
    predict(shared_run, path.parent, tmp_path / "out", "--no-crf")
    with rasterio.open(tmp_path / "out" / "ids" / "a.tif") as ids:
        assert ids.crs == CRS.from_epsg(32632)
    assert (tmp_path / "out" / "ids" / "b.png").is_file()


def test_larger_files_than_memory_may_hold(shared_run, tmp_path, monkeypatch, capsys):
    write(tmp_path / "photos" / "a.tif", scene(301, 149))
    write(tmp_path / "photos" / "b.tif", scene(301, 149), crs=None, transform=None)
    legend = predict(shared_run, tmp_path / "photos", tmp_path / "out", "--max-pixels", "9000", "--no-crf", status=1)
    assert [name[-5:] for name in (entry["photo"] for entry in legend["photos"])] == ["a.tif"]
    assert "b.tif" in legend["failed"][0] and "depthg[geo]" not in legend["failed"][0]
    monkeypatch.setattr(geotiff, "GEO_READ", False)
    capsys.readouterr()
    options = [str(shared_run), str(tmp_path / "photos"), "--device", "cpu", "--max-pixels", "9000"]
    lost = r"1 of 2 photos are GeoTIFFs.* lose the georeference; pip install 'depthg\[geo"
    with pytest.warns(UserWarning, match=lost):
        assert main([*options, "--out", str(tmp_path / "png")]) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if "is larger than the limit" in line]
    assert ["pip install 'depthg[geo]'" in line for line in told] == [True, False]
    assert not list((tmp_path / "png").rglob("*.tif"))
    with pytest.warns(UserWarning, match="1 of 2 photos are GeoTIFFs"):
        predict(shared_run, tmp_path / "photos", tmp_path / "small", "--no-crf")
    assert {path.name for path in (tmp_path / "small" / "ids").iterdir()} == {"a.png", "b.png"}


@pytest.mark.parametrize("limit", ["10000000", "20000"])
def test_a_range_is_chosen_for_rasters_of_any_size(shared_run, tmp_path, limit):
    array = scene(301, 149, 4).astype(np.uint16) * 9
    write(tmp_path / "photos" / "a.tif", array, nodata=0)
    with pytest.warns(UserWarning) as told:
        predict(shared_run, tmp_path / "photos", tmp_path / "out", "--no-crf", "--max-pixels", limit)
    texts = [str(warning.message) for warning in told]
    assert any("bands 1, 2, 3 are read as red, green and blue" in text for text in texts)
    assert any("1 of 1 photos have more than 8 bits" in text for text in texts)
    low, high = np.percentile(array[:3][:, (array[:3] > 0).all(0)], (0.1, 99.9))
    assert any(f"{low:g}..{high:.6g}" in text or f"{low:g}..{round(high)}" in text for text in texts), texts
    assert len(np.unique(read(tmp_path / "out" / "ids" / "a.tif"))) > 1


def test_an_overlay_is_scaled_down_and_no_data_is_dark(shared_run, tmp_path, monkeypatch):
    monkeypatch.setattr(raster_files, "PICTURE", 5000)
    monkeypatch.setattr(raster_files, "WHOLE", 5000)
    array = scene(301, 149) | 64
    array[:, :150] = 0
    write(tmp_path / "photos" / "a.tif", array, nodata=0)
    legend = predict(shared_run, tmp_path / "photos", tmp_path / "out", "--no-crf", "--overlay", "png")
    drawn = np.array(Image.open(tmp_path / "out" / "overlay" / "a.png"))
    assert drawn.shape[1] == 49 and 4000 < 49 * 100 <= 5000
    assert (drawn[:46] == 0).all() and (drawn[53:99].max(-1) > 30).all()
    assert sum(legend["photos"][0]["share"].values()) == pytest.approx(1, abs=1e-5)
    assert read(tmp_path / "out" / "ids" / "a.tif").shape == (301, 149)


def test_an_overlay_names_no_hole():
    ids = np.full((100, 100), 2, np.uint8)
    ids[:, 50:] = 0
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 0]], np.uint8)
    image = np.zeros((100, 100, 3), np.uint8)
    drawn = np.asarray(labelled_overlay(image, ids, colours, ["sky", "road"]))
    assert (drawn[:100, :49] == 0).all() and (drawn[:100, 55:] > 0).any()
    whole = np.asarray(labelled_overlay(image, np.zeros_like(ids), colours, ["sky", "road"]))
    assert (drawn[100:] == whole[100:]).all(), "shares are of the pixels with data"


@pytest.mark.parametrize("form", [None, *FORMATS])
def test_ids_are_kept_whole_for_exports_alone(shared_run, tmp_path, form, monkeypatch):
    if form == "coco":
        pytest.importorskip("pycocotools")
    monkeypatch.setattr(raster_files, "WHOLE", 0)
    kept, of_rows = [], raster_files.IdRows.put

    def put(self, start, ids):
        of_rows(self, start, ids)
        kept.append(self.whole)

    monkeypatch.setattr(raster_files.IdRows, "put", put)
    write(tmp_path / "photos" / "a.tif", scene(301, 149))
    predict(
        shared_run, tmp_path / "photos", tmp_path / "out", "--no-crf", *([] if form is None else ["--export", form])
    )
    assert len(kept) == 2 and all((ids is None) == (form is None) for ids in kept)


# ---- parts


@pytest.mark.parametrize(("n", "empty"), [(1, 255), (255, 255), (256, 65535), (300, 65535)])
def test_files_of_any_number_of_clusters(tmp_path, n, empty):
    size, rng = (300, 290), np.random.default_rng(0)
    ids = rng.integers(0, n, size).astype(np.uint8 if n < 256 else np.uint16)
    holes, colours = rng.random(size) < 0.2, rng.integers(0, 256, (n, 3), dtype=np.uint8)
    path = write(tmp_path / "photo.tif", scene(*size))
    with raster_rows.raster_rows(path, Reading()) as rows:
        bits = Holes(size[1])
        with new_raster(tmp_path / "ids.tif", size, rows.place, colours) as file:
            taker = IdRows(file, n, size, (30, 29), bits)
            for start in range(0, 300, ROWS):
                bits.put(start, min(start + ROWS, 300), holes[start : start + ROWS])
            for start in range(0, 300, 256):
                taker.put(start, ids[start : start + 256])
    with rasterio.open(tmp_path / "ids.tif") as file:
        assert (file.read(1) == np.where(holes, empty, ids)).all() and file.nodata == empty == no_data_id(n)
        assert file.dtypes == ("uint8" if n < 256 else "uint16",) and (file.read_masks(1) == 255 * ~holes).all()
        assert [file.colormap(1)[i][:3] for i in range(n)] == [tuple(colour) for colour in colours.tolist()]
    assert (taker.counts == np.bincount(ids[~holes], minlength=n)).all()
    assert (taker.kept == np.where(holes, n, ids)[5::10, 5::10]).all()


def test_scores_of_large_maps_are_thinned(monkeypatch):
    scores = np.random.default_rng(0).random((2, 50, 40))
    for limit, step in ((10**6, 1), (500, 2), (100, 5)):
        monkeypatch.setattr(raster_files, "SCORES", limit)
        thin = ThinScores((50, 40))
        for start in range(0, 50, 7):
            thin.put(scores[:, start : start + 7])
        assert (thin.all == scores[:, ::step, ::step]).all()


def test_holes_are_let_go_when_they_were_taken():
    holes = Holes(9)
    mask = np.random.default_rng(0).random((6, 9)) < 0.5
    holes.put(0, 3, mask[:3])
    holes.put(3, 5, None)
    holes.put(5, 6, mask[5:])
    found = np.zeros((6, 9), bool)
    for start, stop in ((0, 2), (2, 4), (4, 6)):
        for rows, part in holes.take(start, stop):
            found[rows] = part
    assert (found[:3] == mask[:3]).all() and not found[3:5].any() and (found[5] == mask[5]).all()
    assert not list(holes.take(6, 7)) and not holes._parts


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from depthg.data.geotiff import Place, environment
from depthg.inference.raster_files import Holes, IdRows, check_written, new_raster
from depthg.storage.whole_files import write_whole
from rasterio.transform import from_origin
size, place = (512, 512), Place(None, from_origin(0, 0, 1, 1), (), None)

def write(partial):
    with new_raster(partial, size, place, np.zeros((9, 3), np.uint8)) as file:
        rows = IdRows(file, 9, size, (9, 9), Holes(512))
        for start in range(0, 512, 256):
            rows.put(start, np.random.default_rng(start).integers(0, 9, (256, 512), np.uint8))
    check_written(partial, rows.checksum)

path = Path(sys.argv[1])
with environment():
    write_whole(path, write)
    whole = path.stat().st_size
    for room in (whole - 1, whole - 999, whole - 9000, whole // 2, 100):
        path.unlink()
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        try:
            write_whole(path, write)
        except OSError as error:
            print("cannot write" in str(error), *path.parent.iterdir())
        resource.setrlimit(resource.RLIMIT_FSIZE, (whole, resource.RLIM_INFINITY))
        write_whole(path, write)
"""


@pytest.mark.skipif(os.name == "nt", reason="no limits of files")
def test_a_full_disk_leaves_no_part_of_a_file(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path / "ids.tif"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == ["True"] * 5, done.stderr


# ---- memory


PEAK = """
import sys
from pathlib import Path
from depthg.predict import main
status = main(sys.argv[1:])
lines = Path("/proc/self/status").read_text().splitlines()  # ru_maxrss would begin with that of the process that tests
print("peak", next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
sys.exit(status)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.parametrize(("crf", "bound"), [("--no-crf", 800), ("--crf", 1500)])
def test_memory_of_a_huge_raster(shared_run, tmp_path, crf, bound):
    """400 million pixels, 1.2 GB of values; sparse, and written in bands of rows as ours are."""
    side, path = 20_000, tmp_path / "big.tif"
    rng = np.random.default_rng(0)
    with rasterio.open(
        path, "w", driver="GTiff", height=side, width=side, count=3, dtype="uint8", crs="EPSG:32632", transform=HERE,
        tiled=True, compress="deflate", zlevel=1, sparse_ok=True, nodata=0, photometric="RGB",
    ) as file:  # fmt: skip
        for row in range(0, side, 1024):
            n = min(1024, side - row)
            coarse = rng.integers(1, 255, (3, math.ceil(n / 64), 100), dtype=np.uint8)
            tiles = np.kron(coarse, np.ones((1, 64, 64), np.uint8))[:, :n]
            file.write(tiles, window=Window(6000, row, 6400, n))
    arguments = [shared_run, path, "--out", tmp_path / "out", "--device", "cpu", crf]
    done = subprocess.run([sys.executable, "-c", PEAK, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split()[-1]) / 1024
    print(peak)
    with rasterio.open(tmp_path / "out" / "ids" / "big.tif") as ids:
        for row in (0, 10_000, 19_999):
            part = ids.read(1, window=Window(0, row, side, 1))[0]
            assert (part[:6000] == 255).all() and (part[6000:12_400] < 11).all() and (part[12_400:] == 255).all()
    assert peak < bound, "MiB"


def test_rasters_side_by_side_and_exports(shared_run, tmp_path, monkeypatch):
    torch.set_num_threads(2)
    for number in range(5):
        write(tmp_path / "photos" / f"{number}.tif", with_holes(scene(301, 149, 1, number).astype(np.float32) / 300))
    options = ["--no-crf", "--overlay", "png", "--export", "voc"]
    predict(shared_run, tmp_path / "photos", tmp_path / "out", *options)
    monkeypatch.setattr(raster_files, "WHOLE", 0)
    torch.set_num_threads(1)
    predict(shared_run, tmp_path / "photos", tmp_path / "apart", *options)
    pictures = [path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.png")]
    assert len(pictures) >= 10
    for path in pictures:
        assert (tmp_path / "out" / path).read_bytes() == (tmp_path / "apart" / path).read_bytes(), path
    for number in range(5):
        ids = [read(tmp_path / name / "ids" / f"{number}.tif") for name in ("out", "apart")]
        assert (ids[0] == ids[1]).all() and (ids[0][200] == 255).all()
        mask = np.array(Image.open(tmp_path / "out" / "voc" / "SegmentationClass" / f"{number}.png"))
        assert ((mask == 0) == (ids[0] == 255)).all(), "no data is in no mask"
