"""``python -m depthg.depth``: inputs of every kind, outputs that training reads, nothing of anybody's overwritten."""

import contextlib
import io
import json
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

from depth_checkpoints import depth_anything, dpt, photo  # noqa: E402
from miniature import settings, write_camvid  # noqa: E402

import depthg.depth.files  # noqa: E402
from depthg.data.base import FileSplit  # noqa: E402
from depthg.data.files import DataError, list_files  # noqa: E402
from depthg.depth.__main__ import main  # noqa: E402
from depthg.depth.network import DepthNetwork  # noqa: E402
from depthg.depth.sources import FolderDepth  # noqa: E402
from depthg.features.preparation import Preparation  # noqa: E402


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    root = tmp_path_factory.mktemp("networks")
    return {
        "metric": depth_anything(root / "metric", metric=True),
        "relative": depth_anything(root / "relative"),
        "dpt": dpt(root / "dpt"),
    }


@pytest.fixture
def photos(tmp_path):
    """Names with spaces and accents, subfolders, two sizes, a rotated and a grey photo."""
    root = tmp_path / "photos"
    (root / "sub dir").mkdir(parents=True)
    for number, name in enumerate(("a.png", "été 1.png", "sub dir/b.png")):
        Image.fromarray(photo(40, 60, number)).save(root / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(40, 60, 5)).save(root / "turned.jpg", exif=exif)
    Image.fromarray(photo(40, 60, 6)).convert("L").save(root / "sub dir" / "grey.png")
    return root


def call(*arguments):
    """Exit status of the command, or the message of its error."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            status = main(list(map(str, arguments)))
    except SystemExit as stop:  # of the argument parser
        return stop.code
    print(errors.getvalue(), end="", file=sys.stderr)
    last = (errors.getvalue().splitlines() or [""])[-1]
    return last if status == 1 and last.startswith("error") else status


def tree(root):
    return {path.relative_to(root).as_posix(): path.stat().st_mtime_ns for path in root.rglob("*")}


MAPS = ["a", "sub dir/b", "sub dir/grey", "turned", "été 1"]


@pytest.mark.parametrize("kind", ["metric", "relative", "dpt"])
@pytest.mark.parametrize("suffix", ["png16", "npy"])
def test_maps_pictures_and_the_way_back(networks, photos, tmp_path, capsys, kind, suffix):
    """What is written is what the network gives, and depth.source=folder reads it with no further setting of units."""
    before, out = tree(photos), tmp_path / "out"
    assert call(photos, "--out", out, "--model", networks[kind], "--format", suffix) == 0
    assert tree(photos) == before
    ending = {"png16": ".png", "npy": ".npy"}[suffix]
    expected = {f"{name}{ending}" for name in MAPS} | {f"previews/{name}.jpg" for name in MAPS} | {"depth.json"}
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == expected
    text = capsys.readouterr().out
    assert "5 depth maps written to" in text and f"depth.source=folder depth.root={out}" in text
    assert ("depth.mapping=none" in text) == (kind != "metric")
    split, network = FileSplit(list_files(photos, recursive=True), root=photos), DepthNetwork(networks[kind])
    source = FolderDepth(out, expects_metres=kind == "metric")
    assert source.metric == (kind == "metric")
    for index in range(5):
        found, truth = source(split, index), network(split.image(index))
        step = {"png16": 1 / 512 if kind == "metric" else 1 / 131070, "npy": 0}[suffix]
        np.testing.assert_allclose(found, truth, atol=step + 2e-5 * (20 if kind == "metric" else 1))
    for path in (out / "previews").rglob("*.jpg"):
        with Image.open(path) as image:
            assert image.size == ((40, 60) if path.stem == "turned" else (60, 40)) and len(image.getcolors(9999)) > 20


def test_training_reads_the_maps(networks, tmp_path):
    root = write_camvid(tmp_path / "camvid")
    for part in ("train", "val"):
        assert call(root / part, "--out", tmp_path / "maps" / part, "--model", networks["metric"]) == 0
    out = tmp_path / "maps" / "train"
    assert (
        call(root / "train", root / "val", "--out", tmp_path / "x", "--model", networks["metric"]) != 0
    )  # 000.png twice
    common = ("depth.source=folder", "loss.depth.relation=normals")
    data = Preparation(settings(root, f"depth.root={out}", *common), torch.device("cpu")).run()
    network = (f"depth.model={networks['metric']}", "loss.depth.relation=normals")
    decoding = "data.workers=1"  # but the depth network stays here
    direct = Preparation(settings(root, "depth.source=model", decoding, *network), torch.device("cpu")).run()
    np.testing.assert_allclose(data.depth.astype(float), direct.depth.astype(float), atol=1e-3)
    assert data.normals is not None


def test_relative_maps_say_so_in_training(networks, tmp_path):
    root = write_camvid(tmp_path / "camvid")
    out = tmp_path / "maps"
    assert call(root / "train", "--out", out, "--model", networks["relative"]) == 0
    good = Preparation(settings(root, f"depth.root={out}", "depth.mapping=none"), torch.device("cpu")).run()
    split = FileSplit(list_files(root / "train"), root=root / "train")
    truth = DepthNetwork(networks["relative"])(split.image(3)).reshape(8, 8, 8, 8).mean((1, 3)).flatten()
    np.testing.assert_allclose(good.depth[3], truth, atol=1e-3)
    with pytest.raises(
        ValueError, match=r"depth\.mapping=saturating needs metres, but depth\.root=\S*maps gives relative"
    ):
        Preparation(settings(root, f"depth.root={out}"), torch.device("cpu")).run()
    (out / "depth.json").write_text("{}")
    with pytest.raises(DataError, match=r"depth\.json is damaged .*make the maps again"):
        Preparation(settings(root, f"depth.root={out}"), torch.device("cpu")).run()


def test_a_changed_unit_is_noticed(networks, tmp_path):
    root = write_camvid(tmp_path / "camvid")
    out = tmp_path / "maps"
    assert call(root / "train", "--out", out, "--model", networks["metric"]) == 0
    first = Preparation(settings(root, f"depth.root={out}"), torch.device("cpu")).run().depth
    stored = json.loads((out / "depth.json").read_text())
    assert stored["metric"] is True and stored["metres_per_unit"] == 1 / 256
    (out / "depth.json").write_text(json.dumps(stored | {"metres_per_unit": 1 / 512}))
    assert not np.array_equal(Preparation(settings(root, f"depth.root={out}"), torch.device("cpu")).run().depth, first)


def test_files_patterns_and_folders(networks, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ("--model", networks["relative"])
    (photos / "odd[1].png").write_bytes((photos / "a.png").read_bytes())
    (photos / "notes.txt").write_text("not a photo")
    for number, (inputs, expected) in enumerate(
        [
            (["photos/a.png", "photos/sub dir/b.png"], ["a", "b"]),
            (["photos/*.png"], ["a", "odd[1]", "été 1"]),
            (["photos/**/*.png"], ["a", "odd[1]", "sub dir/b", "sub dir/grey", "été 1"]),
            (["photos/sub*"], ["sub dir/b", "sub dir/grey"]),
            (["photos/odd[1].png", "photos/odd[1].png", str(photos / "odd[1].png")], ["odd[1]"]),
        ]
    ):
        out = tmp_path / f"out{number}"
        assert call(*inputs, "--out", out, *model) == 0
        found = sorted(path.relative_to(out).with_suffix("").as_posix() for path in out.rglob("*.png"))
        assert found == expected, inputs


def test_a_broken_file_is_named_and_the_rest_is_done(networks, photos, tmp_path, capsys):
    (photos / "broken.png").write_bytes(b"broken")
    (photos / "empty.jpg").write_bytes(b"")
    os.symlink(tmp_path / "gone.png", photos / "link.png")
    os.symlink(photos / "loop.png", photos / "loop.png")
    out = tmp_path / "out"
    assert call(photos, tmp_path / "no.jpg", "--out", out, "--model", networks["relative"]) == 1
    text = capsys.readouterr()
    for name in ("broken.png", "empty.jpg: it is empty", "link.png", "loop.png", "no.jpg: there is no such file"):
        assert name in text.err
    assert "5 depth maps written" in text.out and "4 photos failed" in text.out
    assert len(list(out.rglob("*.png"))) == 5
    assert (
        call(tmp_path / "no.jpg", "--out", out, "--model", networks["relative"])
        == "error: there is no photo to work on"
    )


def test_output_that_is_not_finite_is_named(networks, photos, tmp_path, capsys, monkeypatch):
    original = DepthNetwork.predict

    def predict(self, inputs, sizes):
        found = original(self, inputs, sizes)
        found[0].values[0, 0] = np.nan
        return found

    monkeypatch.setattr(DepthNetwork, "predict", predict)
    out = tmp_path / "out"
    assert call(photos, "--out", out, "--model", networks["relative"], "--batch-size", 9) == 1
    assert capsys.readouterr().err.count("gives depth that is not finite for") == 2  # one of each of two sizes
    assert len(list(out.rglob("*.png"))) == 3


def test_nothing_is_made_twice_or_overwritten_unasked(networks, photos, tmp_path, capsys, monkeypatch):
    out, common = tmp_path / "out", ("--model", networks["relative"])
    assert call(photos, "--out", out, *common) == 0
    first = tree(out)
    (out / "a.png").unlink()
    assert call(photos, "--out", out, *common) == 0
    assert "1 depth maps written" in (text := capsys.readouterr().out) and "4 were there" in text
    after = tree(out)
    assert {name for name in first if first[name] != after[name]} <= {
        "a.png",
        "previews/a.jpg",
        "previews",
        "depth.json",
        ".",
    }
    monkeypatch.setattr(DepthNetwork, "predict", lambda *a: pytest.fail("predicted again"))
    assert call(photos, "--out", out, *common) == 0
    monkeypatch.undo()
    assert call(photos, "--out", out, *common, "--overwrite") == 0
    assert all(tree(out)[f"{name}.png"] != after[f"{name}.png"] for name in MAPS)


def test_maps_of_two_networks_never_mix(networks, photos, tmp_path):
    out = tmp_path / "out"
    assert call(photos, "--out", out, "--model", networks["relative"]) == 0
    before = tree(out)
    for changes in (("--model", networks["metric"]), ("--model", networks["relative"], "--flip")):
        assert "made with other settings: pass --overwrite" in call(photos, "--out", out, *changes)
    message = call(photos / "a.png", "--out", out, "--model", networks["metric"], "--overwrite")
    assert "was not made with these settings: choose another folder" in message  # the other four would stay
    message = call(photos, "--out", out, "--model", networks["relative"], "--format", "npy", "--overwrite")
    assert "was not made with these settings" in message  # two maps of one photo
    assert tree(out) == before
    assert call(photos, "--out", out, "--model", networks["metric"], "--overwrite") == 0
    assert FolderDepth(out).metric is True


def test_photos_are_never_overwritten(networks, photos, tmp_path):
    before, model = tree(photos), ("--model", networks["relative"])
    assert "is the folder of the photos" in call(photos, "--out", photos, *model)
    assert "is the folder of the photo " in call(photos / "a.png", "--out", photos, *model)
    assert "is the folder of the photo " in call(photos / "sub dir" / "b.png", "--out", photos / "sub dir", *model)
    os.symlink(photos, tmp_path / "link")
    assert "is the folder of the photos" in call(photos, "--out", tmp_path / "link", *model)
    assert "is the folder of the photos" in call(photos / "*.png", "--out", tmp_path / "link", *model)
    out = tmp_path / "out"
    out.mkdir()
    os.link(photos / "a.png", out / "a.png")
    assert "is a photo and would be overwritten" in call(photos, "--out", out, *model, "--overwrite")
    (out / "a.png").unlink()
    Image.fromarray(photo(40, 60, 9)).save(out / "mine.png")
    assert "mine.png, which was not made with these settings" in call(photos, "--out", out, *model)
    assert tree(photos) == before and [path.name for path in out.iterdir()] == ["mine.png"]


def test_a_folder_inside_the_photos_may_be_named(networks, photos, tmp_path):
    model, out = ("--model", networks["relative"]), photos / "depth"
    before = tree(photos)
    for _ in range(2):  # the second time there are pictures below the photos
        assert call(photos, "--out", out, *model) == 0
        assert sorted(p.relative_to(out).with_suffix("").as_posix() for p in out.rglob("*.png")) == MAPS
    assert {name: time for name, time in tree(photos).items() if name in before and name != "."} == before


def test_two_photos_of_one_map_are_named(networks, photos, tmp_path):
    (photos / "a.bmp").write_bytes((photos / "a.png").read_bytes())
    message = call(photos, "--out", tmp_path / "out", "--model", networks["relative"])
    assert "a.bmp and" in message and "a.png would both be written to" in message and not (tmp_path / "out").exists()


def test_full_disk_is_one_error_and_leaves_whole_files(networks, photos, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device", "x.png")

    monkeypatch.setattr(depthg.depth.files, "write_depth", full)
    assert "No space left on device" in call(photos, "--out", tmp_path / "out", "--model", networks["relative"])
    assert list((tmp_path / "out").rglob("*.png")) == []


def test_errors_of_the_model_come_before_anything_is_written(networks, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert "has no config.json" in call(photos, "--out", out, "--model", tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    message = call(photos, "--out", out)
    assert "hub id Intel/zoedepth-nyu-kitti" in message and message.endswith("and pass --model FOLDER")
    (tmp_path / "file").write_text("")
    assert "is a file: name a folder" in call(photos, "--out", tmp_path / "file", "--model", networks["dpt"])
    assert "sees no GPU" in call(photos, "--out", out, "--model", networks["dpt"], "--device", "cuda:7") or (
        torch.cuda.is_available()
    )
    assert call(photos, "--out", out, "--batch-size", "0") == 2 and call(photos) == 2
    assert not out.exists()


def test_options_reach_the_network(networks, photos, tmp_path, monkeypatch):
    seen, original = [], DepthNetwork.predict

    def predict(self, inputs, sizes):
        seen.append((len(inputs), self.flip, self.metric))
        return original(self, inputs, sizes)

    monkeypatch.setattr(DepthNetwork, "predict", predict)
    options = ("--model", networks["relative"], "--flip", "--output", "metres", "--batch-size", 2)
    assert call(photos, "--out", tmp_path / "out", *options) == 0
    assert max(size for size, *_ in seen) == 2 and {rest for _, *rest in seen for rest in [tuple(rest)]} == {
        (True, True)
    }


def test_the_command_as_a_user_types_it(networks, photos, run_module):
    shown = run_module("depthg.depth", "--help")
    assert shown.returncode == 0 and "--overwrite" in shown.stdout and "depth.source=folder" in shown.stdout
    (photos / "broken.png").write_bytes(b"broken")
    done = run_module("depthg.depth", "photos", "--out", "maps", "--model", str(networks["metric"]))
    assert done.returncode == 1 and "5 depth maps written to maps" in done.stdout, done.stderr
    assert "photos/broken.png" in done.stderr and "Traceback" not in done.stderr
