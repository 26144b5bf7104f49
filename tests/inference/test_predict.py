"""The command: files, folders and patterns in; ids, overlays, probabilities and a legend out; nothing is lost."""

import base64
import errno
import html
import io
import json
import os
import re
import shutil
import signal
import time
from urllib.parse import unquote

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from depthg import predict
from depthg.inference.overlays import labelled_overlay, overlay
from depthg.inference.segmenter import Segmenter
from depthg.model.checkpoints import read_checkpoint
from depthg.predict import main


@pytest.fixture
def run(shared_run):
    return str(shared_run)


@pytest.fixture
def photos(tmp_path):
    """Photos of several sizes and kinds below ``photos``."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, (name, size) in enumerate({"a.jpg": (90, 120), "b.png": (64, 64), "sub/c.png": (200, 70)}.items()):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize(size[::-1], Image.Resampling.BICUBIC).convert("L" if number == 1 else "RGB").save(folder / name)
    return folder


def call(*arguments):
    """The command on the CPU; without the CRF unless an option names it."""
    given = [str(argument) for argument in arguments]
    return main([*given, "--device", "cpu", *(() if {"--crf", "--no-crf"} & {*given} else ("--no-crf",))])


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def read(out):
    return json.loads((out / "legend.json").read_text())


def test_a_folder_becomes_ids_overlays_and_a_legend(run, photos, tmp_path, capsys):
    out, before = tmp_path / "out", {path: path.stat().st_mtime_ns for path in photos.rglob("*")}
    assert call(run, photos, "--out", out) == 0
    names = ["a", "b", "sub_c"]
    expected = (
        [f"ids/{name}.png" for name in names]
        + ["index.html", "legend.json"]
        + [f"overlay/{name}.jpg" for name in names]
    )
    assert tree(out) == expected
    assert {path: path.stat().st_mtime_ns for path in photos.rglob("*")} == before
    segmenter, legend = Segmenter.load(run), read(out)
    assert "3 of 3 photos segmented into 11 clusters" in capsys.readouterr().out
    assert [row["name"] for row in legend["ids"]] == list(segmenter.names) and legend["named"] and not legend["failed"]
    total, pixels = np.zeros(11), 0
    for name, entry in zip(names, legend["photos"], strict=True):
        image = Image.open(out / "ids" / f"{name}.png")
        ids, photo = np.array(image), Image.open(entry["photo"])
        assert image.mode == "P" and image.size == photo.size
        assert (ids == segmenter.predict(entry["photo"]).ids).all()
        assert (np.array(image.convert("RGB")) == segmenter.colours[ids]).all(), (
            "the palette shows the legend's colours"
        )
        counts = np.bincount(ids.ravel(), minlength=11)
        shares = [entry["share"].get(str(i), 0) for i in range(11)]
        np.testing.assert_allclose(shares, counts / ids.size, atol=1e-6)
        total, pixels = total + counts, pixels + ids.size
        drawn = np.asarray(Image.open(out / "overlay" / f"{name}.jpg")).astype(float)
        mean = (np.asarray(photo.convert("RGB")).astype(float) + segmenter.colours[ids]) / 2
        assert drawn.shape[0] > ids.shape[0] and drawn.shape[1:] == (ids.shape[1], 3), "a legend below"
        assert np.median(np.abs(drawn[: ids.shape[0]] - mean)) < 6
    np.testing.assert_allclose([row["share"] for row in legend["ids"]], total / pixels, atol=1e-6)
    assert [row["colour"] for row in legend["ids"]] == [f"#{bytes(c).hex()}" for c in segmenter.colours]
    classes = segmenter.run.classes
    assert [classes[row["class"]] for row in legend["ids"]] == list(segmenter.names)


def test_options(run, photos, tmp_path):
    out, photo = tmp_path / "out", photos / "a.jpg"
    assert call(run, photo, "--out", out, "--probabilities", "--overlay", "png", "--window", 64, "--batch", 2) == 0
    assert tree(out) == ["ids/a.png", "index.html", "legend.json", "overlay/a.png", "probabilities/a.npz"]
    segmenter, ids = Segmenter.load(run, window=64), np.array(Image.open(out / "ids" / "a.png"))
    assert (ids == segmenter.predict(photo).ids).mean() > 0.995
    with np.load(out / "probabilities" / "a.npz") as stored:
        assert stored["probabilities"].shape == (11, 90, 120) and stored["probabilities"].dtype == np.float16
        np.testing.assert_allclose(stored["probabilities"].astype(float).sum(0), 1, atol=0.01)
        assert (stored["probabilities"].argmax(0) == ids).mean() > 0.9 and list(stored["names"]) == list(
            segmenter.names
        )
    expected = labelled_overlay(np.asarray(Image.open(photo)), ids, segmenter.colours, segmenter.names)
    assert (np.asarray(Image.open(out / "overlay" / "a.png")) == np.asarray(expected)).all()
    assert call(run, photo, "--out", out, "--overwrite", "--plain", "--overlay", "png", "--window", 64) == 0
    expected = overlay(np.asarray(Image.open(photo)), ids, segmenter.colours)
    assert (np.asarray(Image.open(out / "overlay" / "a.png")) == expected).all()
    assert (read(out)["window"], read(out)["crf"]) == (64, False)
    assert call(run, photo, "--out", tmp_path / "plain", "--overlay", "none") == 0
    assert (
        tree(tmp_path / "plain") == ["ids/a.png", "index.html", "legend.json"]
        and read(tmp_path / "plain")["window"] == "resize"
    )
    other = np.array(Image.open(tmp_path / "plain" / "ids" / "a.png"))
    assert (other != ids).any(), "windows see the photo at another scale"


def test_larger_photos_than_asked_for_are_refused(run, photos, tmp_path, capsys):
    assert call(run, photos, "--out", tmp_path / "small", "--max-pixels", 10_800) == 1
    [failed] = read(tmp_path / "small")["failed"]
    assert (
        "sub/c.png is larger than the limit of 10800 pixels (70 x 200 pixels): scale it down, or pass --max-pixels N"
        in failed
    )
    assert failed.strip() in capsys.readouterr().err and "data." not in failed
    assert call(run, photos, "--out", tmp_path / "all", "--max-pixels", 14_000) == 0
    assert Segmenter.load(run, max_pixels=7).reading.max_pixels == 7
    assert Segmenter.load(run).reading.max_pixels == Segmenter.load(run).run.config.data.max_pixels == 120_000_000


def test_crf_is_the_default(run, photos, tmp_path):
    assert main([str(run), str(photos), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert call(run, photos, "--out", tmp_path / "plain") == 0
    legend = read(tmp_path / "out")
    assert not read(tmp_path / "plain")["crf"]
    same = [(tmp_path / x / "ids" / "a.png").read_bytes() for x in ("out", "plain")]
    assert same[0] != same[1]
    segmenter = Segmenter.load(run)
    assert legend["crf"]
    for entry in legend["photos"]:
        ids = np.array(Image.open(tmp_path / "out" / entry["files"][0]))
        assert (ids == segmenter.predict(entry["photo"], crf=True).ids).all()


def test_the_page_shows_the_clearest_crops_and_links_to_the_files(run, photos, tmp_path):
    out, strange = tmp_path / "out", photos / "a&b 50%#ü.png"
    shutil.copy(photos / "b.png", strange)
    (photos / "broken.jpg").write_text("x")
    assert call(run, photos, "--out", out) == 1
    page, legend = (out / "index.html").read_text(), read(out)
    assert "default-src 'none'" in page and "<script" not in page and "https://" not in page
    occurring = [row for row in legend["ids"] if row["share"]]
    assert [*re.findall(r'background:(#[0-9a-f]{6})"', page)] == [
        row["colour"] for row in sorted(occurring, key=lambda row: -row["share"])
    ]
    for row in occurring:
        assert f"<b>{row['id']} {row['name']}</b> <span>{100 * row['share']:.1f} %</span>" in page
    links = {unquote(html.unescape(link)) for link in re.findall(r'href="([^"]+)"', page)}
    assert links == {file for photo in legend["photos"] for file in photo["files"] if "overlay" in file}
    assert all((out / link).is_file() for link in links) and "broken.jpg" in page and "a&amp;b 50%#ü.png" in page
    crops = [
        Image.open(io.BytesIO(base64.b64decode(text)))
        for text in re.findall(r'base64,([^"]+)" alt="[^"]*" title', page)
    ]
    assert len(crops) >= len(occurring) and {crop.size for crop in crops} == {(144, 144)}


def test_flip(run, photos, tmp_path):
    assert call(run, photos / "a.jpg", "--out", tmp_path / "flip", "--flip", "--overlay", "none") == 0
    assert call(run, photos / "a.jpg", "--out", tmp_path / "plain", "--overlay", "none") == 0
    assert (read(tmp_path / "flip")["flip"], read(tmp_path / "plain")["flip"]) == (True, False)
    flip, plain = (np.array(Image.open(tmp_path / name / "ids" / "a.png")) for name in ("flip", "plain"))
    assert (flip == Segmenter.load(run, flip=True).predict(photos / "a.jpg").ids).all() and (flip != plain).any()


def test_without_compiled_code_there_is_no_crf(run, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("depthg.kernels.checks._extension.HAS_CPU", False)
    assert main([str(run), str(photos), "--out", str(tmp_path / "out"), "--device", "cpu", "--crf"]) == 1
    assert "the CRF cannot run" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main([str(run), str(photos), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert read(tmp_path / "out")["crf"] is False


def test_broken_files_are_reported_and_stop_nothing(run, photos, tmp_path, capsys):
    (photos / "aa.png").write_bytes(b"no image")
    (photos / "empty.jpg").touch()
    whole = (photos / "b.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    (photos / "loop.png").symlink_to("loop.png")
    os.mkfifo(photos / "pipe.png")
    assert call(run, photos, photos / "missing.jpg", f"{photos}/none*.jpg", "", "--out", out) == 1
    text = capsys.readouterr()
    for name in ("aa.png", "empty.jpg", "cut.png", "missing.jpg", "none*.jpg", "loop.png", "pipe.png", "empty text"):
        assert name in text.err, name
    assert "3 of 8 photos" in text.out and "on_error" not in text.err
    assert [os.path.basename(entry["photo"]) for entry in read(out)["photos"]] == ["a.jpg", "b.png", "c.png"]
    assert len(read(out)["failed"]) == 8 and len(list((out / "ids").iterdir())) == 3


@pytest.mark.parametrize(
    "option, message", [("--window=abc", "'abc' is neither resize nor a number of pixels"), ("--out=", "no name")]
)
def test_options_that_mean_nothing_are_named(run, photos, tmp_path, capsys, option, message):
    with pytest.raises(SystemExit):
        call(run, photos, "--out", tmp_path / "out", option)
    assert message in capsys.readouterr().err


def test_stops_and_full_disks_are_a_sentence(run, photos, tmp_path, capsys, monkeypatch):
    def stop(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    def fill(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    for work, status, message in ((stop, 130, "stopped; what is in"), (fill, 1, "error: [Errno 28] No space left")):
        monkeypatch.setattr(predict, "predict_files", work)
        assert call(run, photos, "--out", tmp_path / "out") == status
        assert message in capsys.readouterr().err


def test_patterns_and_repeated_photos(run, photos, tmp_path):
    out = tmp_path / "out"
    assert call(run, f"{photos}/*.jpg", photos / "a.jpg", f"{photos}/**/*.png", "--out", out, "--overlay", "none") == 0
    assert tree(out) == ["ids/a.png", "ids/b.png", "ids/sub_c.png", "index.html", "legend.json"]


def test_photos_with_one_stem_get_files_of_their_own(run, photos, tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (40, 40), "red" if folder == "x" else "blue").save(tmp_path / folder / "same.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "x" / "SAME.jpg")
    out = tmp_path / "out"
    inputs = [tmp_path / "x" / "same.png", tmp_path / "y" / "same.png", tmp_path / "x" / "SAME.jpg", photos / "a.jpg"]
    assert call(run, *inputs, "--out", out, "--overlay", "none") == 0
    entries = {entry["photo"]: entry["files"][0] for entry in read(out)["photos"]}
    assert list(entries) == [str(path) for path in inputs]
    assert len({name.casefold() for name in entries.values()}) == 4 and entries[str(inputs[3])] == "ids/a.png"
    assert entries[str(inputs[1])] == "ids/y_same.png"


def test_nothing_is_replaced_unasked(run, photos, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "ids").mkdir(parents=True)
    (out / "ids" / "b.png").write_text("mine")
    assert call(run, photos, "--out", out) == 1
    assert "b.png exists; pass --overwrite" in capsys.readouterr().err and tree(out) == ["ids/b.png"]
    assert call(run, photos, "--out", out, "--overwrite") == 0
    assert Image.open(out / "ids" / "b.png").size == (64, 64)
    assert call(run, photos, "--out", out) == 1 and "legend.json exists" in capsys.readouterr().err


def test_photos_are_never_written_to(run, photos, tmp_path, capsys):
    assert call(run, photos, "--out", photos, "--overwrite") == 1
    assert "the folder of the photos" in capsys.readouterr().err
    (photos / "ids").mkdir()
    Image.new("RGB", (40, 40)).save(photos / "ids" / "q.png")
    content = (photos / "ids" / "q.png").read_bytes()
    assert call(run, photos / "ids" / "q.png", "--out", photos, "--overwrite") == 1
    assert "would be replaced" in capsys.readouterr().err and (photos / "ids" / "q.png").read_bytes() == content


def test_results_inside_the_folder_are_not_taken_for_photos(run, photos):
    for _ in range(2):
        assert call(run, photos, "--out", photos / "results", "--overwrite") == 0
        assert len(read(photos / "results")["photos"]) == 3


def test_impossible_requests(run, photos, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((tmp_path / "empty", photos, "--out", tmp_path / "o"), "not a run folder"),
        ((tmp_path / "nowhere", photos, "--out", tmp_path / "o"), "not a run folder"),
        ((run, photos, "--out", tmp_path / "file"), "cannot write in"),
        ((run, photos, "--out", tmp_path / "file" / "deeper"), "cannot write in"),
        ((run, tmp_path / "empty", "--out", tmp_path / "o"), "no photos there"),
        ((run, photos, "--out", tmp_path / "o", "--window", "3"), "window=3"),
        ((run, photos, "--out", tmp_path / "o", "--batch", "0"), "batch=0"),
        ((run, photos, "--out", tmp_path / "o", "--checkpoint", "best"), "no best checkpoint"),
        ((run, photos, "--out", tmp_path / "o", "--weights", tmp_path / "w.pth"), "w.pth does not exist"),
    ):
        assert call(*arguments) == 1, message
        assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    with pytest.raises(SystemExit):
        call(run, photos, "--out", tmp_path / "o", "--window", "wide")


def test_a_damaged_checkpoint_is_named(run, photos, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "copy")
    file = tmp_path / "copy" / "checkpoints" / "last" / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert call(tmp_path / "copy", photos, "--out", tmp_path / "o") == 1
    assert "checkpoint.safetensors is damaged" in capsys.readouterr().err
    shutil.rmtree(file.parent)
    assert call(tmp_path / "copy", photos, "--out", tmp_path / "o") == 1
    assert "no checkpoint" in capsys.readouterr().err


def test_clusters_without_a_matching_are_numbered(run, photos, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy" / "metrics.json").unlink()
    assert call(tmp_path / "copy", photos, "--out", tmp_path / "o") == 0
    assert "named by number" in capsys.readouterr().out
    legend = read(tmp_path / "o")
    assert not legend["named"] and legend["ids"][2]["name"] == "cluster 2" and legend["ids"][2]["class"] is None


@pytest.mark.parametrize("clusters", [256, 257])
def test_most_clusters_of_a_palette(run, photos, tmp_path, clusters):
    """A run with as many clusters as a palette has colours, and one more."""
    shutil.copytree(run, tmp_path / "copy")
    folder = tmp_path / "copy" / "checkpoints" / "last"
    tensors, header = read_checkpoint(folder)
    tensors["model.cluster.centroids"] = torch.randn(clusters, 8, generator=torch.Generator().manual_seed(0))
    save_file(tensors, folder / "checkpoint.safetensors", metadata={"depthg": json.dumps(header)})
    settings = yaml.safe_load((tmp_path / "copy" / "config.yaml").read_text())
    (tmp_path / "copy" / "config.yaml").write_text(yaml.safe_dump({**settings, "n_classes": clusters}))
    assert call(tmp_path / "copy", photos / "a.jpg", "--out", tmp_path / "o", "--overlay", "png", "--plain") == 0
    image = Image.open(tmp_path / "o" / "ids" / "a.png")
    assert image.mode == ("P" if clusters == 256 else "I;16")
    ids, segmenter = np.array(image), Segmenter.load(tmp_path / "copy")
    assert (ids == segmenter.predict(photos / "a.jpg").ids).all() and ids.max() > 128
    shares = [row["share"] for row in read(tmp_path / "o")["ids"]]
    np.testing.assert_allclose(shares, np.bincount(ids.ravel(), minlength=clusters) / ids.size, atol=1e-6)
    expected = overlay(np.asarray(Image.open(photos / "a.jpg")), ids, segmenter.colours)
    assert (np.asarray(Image.open(tmp_path / "o" / "overlay" / "a.png")) == expected).all()


def test_a_full_disk_leaves_whole_files_only(run, photos, tmp_path, monkeypatch, capsys):
    save = Image.Image.save

    def full(self, path, *arguments, **options):
        if options.get("format") == "JPEG":
            with open(path, "wb") as file:
                file.write(b"half")
            raise OSError(28, "No space left on device")
        save(self, path, *arguments, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    assert call(run, photos, "--out", tmp_path / "o") == 1
    assert "No space left" in capsys.readouterr().err
    assert not [name for name in tree(tmp_path / "o") if "overlay" in name or "legend" in name]


def test_from_the_shell(run_module, run, photos, tmp_path):
    done = run_module("depthg.predict", run, str(photos / "a.jpg"), "--out", "out", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert (
        "1 of 1 photos" in done.stdout
        and "predicting" in done.stdout
        and (tmp_path / "out" / "ids" / "a.png").is_file()
    )


def test_help_names_the_options(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    found = capsys.readouterr().out
    assert ended.value.code == 0
    for option in ("--window", "--crf", "--probabilities", "--overlay", "--checkpoint", "--weights", "--overwrite"):
        assert option in found
