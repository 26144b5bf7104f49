"""Kept depth maps: found by pixels, whole or absent, resumed after a kill; and training on them."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

from depth_checkpoints import depth_anything, photo  # noqa: E402
from miniature import settings, write_camvid  # noqa: E402

import depthg.depth.cache  # noqa: E402
from depthg.data.base import FileSplit, Subset  # noqa: E402
from depthg.data.files import DataError  # noqa: E402
from depthg.data.transforms import Views  # noqa: E402
from depthg.depth.cache import Crops, ModelDepth, same_shape  # noqa: E402
from depthg.depth.network import DepthNetwork  # noqa: E402
from depthg.depth.sources import depth_source  # noqa: E402
from depthg.features.preparation import Preparation  # noqa: E402
from depthg.runtime.read_ahead import ahead  # noqa: E402
from depthg.train import train  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("networks")
    return {"relative": depth_anything(root / "relative"), "metric": depth_anything(root / "metric", metric=True)}


def write_photos(root, sizes):
    root.mkdir(parents=True)
    for number, size in enumerate(sizes):
        Image.fromarray(photo(*size, seed=number)).save(root / f"{number}.png")
    return FileSplit(sorted(root.iterdir()), root=root)


@pytest.fixture
def split(tmp_path):
    return write_photos(tmp_path / "photos", [(40, 60)] * 4 + [(60, 40)] * 3)


def maps(cache):
    return sorted(path for path in cache.rglob("*") if path.is_file() and path.name != "settings.json")


def spied(source, monkeypatch):
    """Sizes of the batches that go through the network from now on."""
    seen, original = [], source.network.predict

    def predict(inputs, sizes):
        seen.append(tuple(inputs.shape))
        return original(inputs, sizes)

    monkeypatch.setattr(source.network, "predict", predict)
    return seen


@pytest.mark.parametrize("kind", ["relative", "metric"])
def test_maps_are_what_the_network_gives_and_are_made_once(folders, split, tmp_path, monkeypatch, kind):
    source = depth_source("model", model=folders[kind], cache=tmp_path / "cache", batch_size=3)
    assert source.metric == (kind == "metric")
    seen = spied(source, monkeypatch)
    source.prepare(split)
    assert sorted(shape[0] for shape in seen) == [1, 3, 3] and len(maps(tmp_path / "cache")) == 7
    seen.clear()
    for index in range(7):
        expected, found = source.network(split.image(index)), source(split, index)
        assert found.dtype == np.float32 and found.shape == split.size(index)
        np.testing.assert_allclose(found, expected, atol=5e-5, rtol=2e-4)
    assert len(seen) == 7  # the network itself, called above; the source read its files
    seen.clear()
    again = ModelDepth(DepthNetwork(folders[kind]), tmp_path / "cache")
    monkeypatch.setattr(again.network, "predict", lambda *a: pytest.fail("predicted again"))
    again.prepare(split)
    assert np.array_equal(again(split, 3), source(split, 3))


def test_maps_are_16_bit_pictures_with_a_readable_description(folders, split, tmp_path):
    source = ModelDepth(DepthNetwork(folders["relative"]), tmp_path / "cache")
    source.prepare(split)
    for path in maps(tmp_path / "cache"):
        with Image.open(path) as image:
            levels = np.array(image)
        assert path.suffix == ".png" and levels.dtype == np.uint16 and (levels.min(), levels.max()) == (0, 65535)
    stored = json.loads((source.folder / "settings.json").read_text())
    assert stored["network"] == str(folders["relative"]) and stored["preprocessing"]["size"] == [56, 56]
    assert source.describe(split) == {"network": source.folder.name}


def test_a_map_follows_the_pixels_not_the_file(folders, split, tmp_path, monkeypatch):
    source = ModelDepth(DepthNetwork(folders["relative"]), tmp_path / "cache")
    source.prepare(Subset(split, [0, 1, 2]))
    seen = spied(source, monkeypatch)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name, index in (("a.png", 1), ("b.bmp", 2), ("c.png", 3)):
        Image.fromarray(split.image(index)).save(moved / name)
    other = FileSplit(sorted(moved.iterdir()), root=moved)
    source.prepare(other)
    assert [shape[0] for shape in seen] == [1]  # c alone is new
    assert np.array_equal(source(other, 1), source(split, 2))
    Image.fromarray(photo(40, 60, seed=99)).save(moved / "a.png")
    source.prepare(other)
    assert [shape[0] for shape in seen] == [1, 1]
    for other in ({"flip": True}, {"output": "metres"}):
        assert ModelDepth(DepthNetwork(folders["relative"], **other), tmp_path / "cache").folder != source.folder


def test_missing_maps_are_made_when_they_are_asked_for(folders, split, tmp_path, monkeypatch):
    source = ModelDepth(DepthNetwork(folders["relative"]), tmp_path / "cache")
    seen = spied(source, monkeypatch)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda index: source(split, index % 2), range(6)))
    assert len(seen) == 2 and len(maps(tmp_path / "cache")) == 2
    for number, depth in enumerate(found):
        np.testing.assert_allclose(depth, found[number % 2], atol=5e-5)


def test_a_killed_run_keeps_what_is_finished(folders, split, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    source = ModelDepth(DepthNetwork(folders["relative"]), tmp_path / "cache", batch_size=2)
    original, calls = source.network.predict, []

    def killed(inputs, sizes):
        calls.append(len(inputs))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(inputs, sizes)

    monkeypatch.setattr(source.network, "predict", killed)
    with pytest.raises(KeyboardInterrupt):
        source.prepare(split)
    assert len(maps(tmp_path / "cache")) == 4
    again = ModelDepth(DepthNetwork(folders["relative"]), tmp_path / "cache", batch_size=2)
    seen = spied(again, monkeypatch)
    again.prepare(split)
    assert sum(shape[0] for shape in seen) == 3 and len(maps(tmp_path / "cache")) == 7


def test_damaged_maps_are_made_again(folders, split, tmp_path, monkeypatch):
    source = ModelDepth(DepthNetwork(folders["relative"]), tmp_path / "cache")
    expected = source(split, 0)
    path = source.path(split.image(0))
    for damage in (b"", path.read_bytes()[:60]):
        path.write_bytes(damage)
        np.testing.assert_allclose(source(split, 0), expected, atol=5e-5)
    Image.fromarray(photo(20, 20)).save(path)  # colours
    np.testing.assert_allclose(source(split, 0), expected, atol=5e-5)


def test_no_room_is_one_error_and_leaves_nothing_half_written(folders, split, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    source = ModelDepth(DepthNetwork(folders["relative"]), tmp_path / "cache", batch_size=2)
    original, calls = Image.Image.save, []

    def full(image, path, **options):
        calls.append(path)
        if len(calls) == 3:
            path.write_bytes(b"half a map")
            raise OSError(28, "No space left on device")
        return original(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(
        OSError, match=r"cannot write depth maps in \S*cache: No space left on device; make room or set"
    ):
        source.prepare(split)
    monkeypatch.undo()
    assert 2 <= len(maps(tmp_path / "cache")) <= 3
    for path in maps(tmp_path / "cache"):
        with Image.open(path) as image:
            image.load()


def test_bad_photos_and_bad_networks_are_named(folders, split, tmp_path):
    source = ModelDepth(DepthNetwork(folders["relative"]), tmp_path / "cache")
    with torch.no_grad():
        source.network.model.head.conv3.bias.fill_(float("nan"))
    with pytest.raises(DataError, match=r"relative gives depth that is not finite for \d"):
        source.prepare(split)
    assert maps(tmp_path / "cache") == []
    split.images[5].write_bytes(b"broken")
    with pytest.raises(DataError, match=r"5\.png"):
        ModelDepth(DepthNetwork(folders["relative"]), tmp_path / "cache").prepare(split)


def test_processes_begin_at_different_photos(folders, split, tmp_path, monkeypatch):
    first = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        source = ModelDepth(DepthNetwork(folders["relative"]), tmp_path / rank, batch_size=1)
        order, original = [], source._job
        monkeypatch.setattr(source, "_job", lambda s, i, order=order, o=original: order.append(i) or o(s, i))
        source.prepare(split)
        assert sorted(order) == list(range(7))
        first[rank] = min(order[:1])
    assert first == {"0": 0, "1": 3}


def test_two_processes_share_the_work(folders, split, tmp_path, monkeypatch):
    """Another process finishes a map after this one has looked at the photo: it is not predicted again."""
    monkeypatch.setenv("RANK", "0")
    source = ModelDepth(DepthNetwork(folders["relative"]), tmp_path / "cache", batch_size=1)
    other = ModelDepth(DepthNetwork(folders["relative"]), tmp_path / "cache", batch_size=1)
    original, calls = source.network.predict, []

    def predict(inputs, sizes):
        calls.append(len(inputs))
        if len(calls) == 1:
            monkeypatch.setenv("RANK", "1")
            other.prepare(split)
        return original(inputs, sizes)

    monkeypatch.setattr(source.network, "predict", predict)
    source.prepare(split)
    assert len(calls) == 1 and len(maps(tmp_path / "cache")) == 7


def test_batches_have_one_shape_and_few_wait():
    jobs = [depthg.depth.cache.Job(None, str(i), torch.zeros(3, 8 + i % 3, 8), (1, 1)) for i in range(20)]
    batches = list(same_shape(iter(jobs), 4))
    assert all(len({job.inputs.shape for job in batch}) == 1 and len(batch) <= 4 for batch in batches)
    assert sorted(int(job.name) for batch in batches for job in batch) == list(range(20))
    alike = (depthg.depth.cache.Job(None, "", torch.zeros(1), (1, 1)) for _ in range(130))
    assert [len(batch) for batch in same_shape(alike, 64)] == [64, 64, 2]
    many = (depthg.depth.cache.Job(None, "", torch.zeros(1, i), (1, 1)) for i in range(100))
    waiting = same_shape(many, 4)
    next(waiting)
    assert sum(1 for _ in many) == 100 - depthg.depth.cache.AHEAD


def test_results_come_in_order_and_only_so_many_ahead():
    started, lock = [], threading.Lock()

    def work(item):
        with lock:
            started.append(item)
        time.sleep(0.001 * (item % 3))
        return item * 2

    with ThreadPoolExecutor(3) as pool:
        results = ahead(pool, work, iter(range(50)), depth=5)
        assert [next(results) for _ in range(3)] == [0, 2, 4]
        time.sleep(0.05)
        assert len(started) <= 8
        assert list(results) == [2 * i for i in range(3, 50)]


# ---- through the preparation


@pytest.fixture
def root(tmp_path):
    return write_camvid(tmp_path / "camvid")


def prepared(root, network, *overrides):
    config = settings(root, "depth.source=model", f"depth.model={network}", *overrides)
    preparation = Preparation(config, CPU)
    return preparation, preparation.run()


def test_metric_network_gives_mapped_depth_and_normals(folders, root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    preparation, data = prepared(root, folders["metric"], "loss.depth.relation=normals")
    metres = preparation.depth_source(preparation.dataset.train, 2).astype(np.float64)
    mapped = (1 - 5 / (metres + 5)).reshape(8, 8, 8, 8).mean((1, 3)).flatten()
    np.testing.assert_allclose(data.depth[2], mapped, atol=1e-3)
    assert data.normals.shape == (6, 64, 4) and (np.abs(data.normals[..., 2]) > 0).any()
    assert data.example(0).maps["depth"].shape == (1, 64, 64)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize("mapping", ["saturating", "log", "linear"])
def test_relative_network_is_taken_as_it_is_or_not_at_all(folders, root, mapping):
    preparation, data = prepared(root, folders["relative"], "depth.mapping=none")
    depth = preparation.depth_source(preparation.dataset.train, 1)
    np.testing.assert_allclose(data.depth[1], depth.reshape(8, 8, 8, 8).mean((1, 3)).flatten(), atol=1e-3)
    with pytest.raises(
        ValueError, match=rf"depth\.mapping={mapping} needs metres, but \S*relative gives relative depth"
    ):
        prepared(root, folders["relative"], f"depth.mapping={mapping}")
    with pytest.raises(ValueError, match=r"mapping=none expects values in \[0, 1\], but \S*metric gives metres"):
        prepared(root, folders["metric"], "depth.mapping=none")


@pytest.mark.parametrize("relation", ["normals", "inclination", "euclidean"])
def test_relations_of_surfaces_say_that_they_need_metres(folders, root, relation):
    wanted = f"loss.depth.relation={relation}"
    with pytest.raises(ValueError, match=rf"{wanted} needs depth in metres, but \S*relative gives relative .*zoedepth"):
        prepared(root, folders["relative"], wanted)
    with pytest.raises(ValueError, match=rf"{wanted} needs (metric depth|depth in metres)"):
        prepared(root, folders["relative"], wanted, "depth.mapping=none")
    prepared(root, folders["relative"], wanted, "depth.mapping=none", "loss.depth.weight=0")  # not compared


def test_settings_of_the_network_reach_it(folders, root):
    preparation, plain = prepared(root, folders["metric"])
    _, flipped = prepared(root, folders["metric"], "depth.flip=true")
    _, turned = prepared(root, folders["metric"], "depth.output=inverse", "depth.mapping=none")
    assert not np.array_equal(plain.depth, flipped.depth)
    assert np.corrcoef(plain.depth.flatten(), turned.depth.flatten())[0, 1] < -0.5
    assert preparation.depth_source.batch_size == 4
    assert prepared(root, folders["metric"], "depth.batch_size=2")[0].depth_source.batch_size == 2


def test_a_network_is_loaded_only_for_what_is_not_there(folders, root, monkeypatch):
    _, first = prepared(root, folders["metric"])
    monkeypatch.setattr(DepthNetwork, "predict", lambda *a: pytest.fail("predicted again"))
    _, again = prepared(root, folders["metric"])
    assert np.array_equal(first.depth, again.depth)
    _, scaled = prepared(root, folders["metric"], "depth.scale=2")  # mapped anew, from the kept maps
    assert not np.array_equal(first.depth, scaled.depth)


def test_depth_on_the_crop_sees_the_crop_alone(folders, root):
    common = ("data.crop=five", "batch_size=4")
    preparation, whole = prepared(root, folders["metric"], *common)
    _, crops = prepared(root, folders["metric"], *common, "depth.on=crop")
    assert whole.depth.shape == crops.depth.shape == (30, 64)
    pixels = preparation.dataset.train.image(1)[:32, :32]  # top left crop of photo 1: view 5
    metres = preparation.depth_source.network(pixels).astype(np.float64)
    np.testing.assert_allclose(
        crops.depth[5], (1 - 5 / (metres + 5)).reshape(8, 4, 8, 4).mean((1, 3)).flatten(), atol=1e-3
    )
    assert not np.allclose(whole.depth[5], crops.depth[5], atol=1e-3)


@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
def test_crops_as_photos_have_the_views_of_their_photos(tmp_path, size):
    split = write_photos(tmp_path / "photos", [(83, 120), (140, 66)])
    views = Views(split, size, "five", crop_ratio=0.6)
    alone = Views(Crops(views), size)
    assert len(alone) == len(views) == 10 and alone.names == views.names
    for view in range(10):
        assert torch.equal(alone.load(view, ("image",)).image, views.load(view, ("image",)).image)
    assert alone.load(3).label is None and Crops(views).fov_deg(0) is None and Crops(views).depth(0) is None


def test_crop_options_that_have_no_meaning(root):
    for overrides in (("depth.source=model",), ("data.crop=five",)):
        with pytest.raises(ValueError, match=r"depth\.on=crop needs depth\.source=model and data\.crop=five"):
            settings(root, *overrides, "depth.on=crop")
    with pytest.raises(ValueError, match=r"relation=normals needs depth\.on=photo"):
        settings(root, "depth.source=model", "data.crop=five", "depth.on=crop", "loss.depth.relation=normals")


def test_training_on_a_network(folders, root):
    config = settings(
        root, "depth.source=model", f"depth.model={folders['metric']}", "loss.depth.relation=inclination", "name=run",
        "iterations=4", "probe.reinit=0", "log_every=1",
    )  # fmt: skip
    metrics = train(config)
    run = root.parent / "runs" / "run"
    assert metrics["cluster.miou"] >= 0 and len(list((run / "panels").glob("*.png"))) == 3
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("loss.depth" in line for line in lines)
