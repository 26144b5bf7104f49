"""``depthg.predict --export``: files of all formats, and corrected masks that come back as labels."""

import json
import shutil
import sys
import zipfile

import numpy as np
import pytest
from miniature import settings, write_camvid
from PIL import Image

from depthg.data.classes import read_classes
from depthg.data.files import read_label
from depthg.data.label_studio import write_label_maps
from depthg.evaluation.evaluate import Request, evaluate
from depthg.inference.exports.formats import FORMATS
from depthg.inference.segmenter import Segmenter
from depthg.model.loaded_run import load_run
from depthg.predict import main
from depthg.train import train

pytest.importorskip("pycocotools")
QUICK = Request(kmeans=False, samples=0)


@pytest.fixture
def photos(tmp_path):
    """Two photos with one stem, one in a subfolder, and a broken one."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in {"a.jpg": (90, 120), "sub/b c.png": (64, 64), "a.png": (70, 200), "dot.png": (1, 1)}.items():
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize(size[::-1], Image.Resampling.BICUBIC).save(folder / name)
    (folder / "broken.png").write_bytes(b"no photo")
    return folder


def call(*arguments):
    return main([*map(str, arguments), "--device", "cpu", "--no-crf", "--overlay", "none"])


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_all_formats(shared_run, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        call(shared_run, photos, "--out", out, "--export", "coco,yolo", "voc", "--export", "cvat", "labelstudio") == 1
    )
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed if line.partition(":")[0] in FORMATS] == list(FORMATS)
    written, stems = tree(out), ["a.jpg", "a.png", "dot", "sub/b c"]
    assert sorted(written) == sorted([
        "coco.json", "cvat.zip", "cvat_labels.json", "index.html", "labelstudio.json", "labelstudio.xml",
        "legend.json", "voc/ImageSets/Segmentation/default.txt", "voc/labelmap.txt", "yolo/data.yaml",
        *(f"voc/SegmentationClass/{stem}.png" for stem in stems), *(f"yolo/labels/{stem}.txt" for stem in stems),
        *(f"ids/{name}.png" for name in ("a.jpg", "a.png", "dot", "sub_b c")),
    ])  # fmt: skip
    legend = json.loads((out / "legend.json").read_text())
    assert [entry["photo"].rpartition("photos/")[2] for entry in legend["photos"]] == [
        image["file_name"] for image in json.loads(written["coco.json"])["images"]
    ]
    known = read_classes(out / "voc" / "labelmap.txt")
    names = [row["name"] for row in legend["ids"]]
    assert list(known.names) == [name if name.casefold() != "void" else known.names[i] for i, name in enumerate(names)]
    for entry, stem in zip(legend["photos"], stems, strict=True):
        label = read_label(out / "voc" / "SegmentationClass" / f"{stem}.png", known.table, colours=known.colours)
        assert (label == np.asarray(Image.open(out / entry["files"][0]))).all(), "exports hold the ids"
    for task in json.loads(written["labelstudio.json"]):
        [prediction] = task["predictions"]
        assert prediction["model_version"] == shared_run.name and 0 < prediction["score"] < 2
    assert call(shared_run, photos, "--out", tmp_path / "again", "--export", *FORMATS) == 1
    again = tree(tmp_path / "again")
    assert {name for name in written if written[name] != again[name]} <= {"legend.json", "index.html"}


@pytest.mark.parametrize("held", ["coco.json", "yolo/data.yaml", "voc/SegmentationClass/sub/b c.png", "cvat.zip",
                                  "cvat_labels.json", "labelstudio.xml"])  # fmt: skip
def test_nothing_is_replaced_unasked(shared_run, photos, tmp_path, capsys, held):
    path, photo = tmp_path / "out" / held, photos / "sub"
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    assert call(shared_run, photo.parent, "--out", tmp_path / "out", "--export", *FORMATS) == 1
    assert f"{held} exists; pass --overwrite" in capsys.readouterr().err and list(tree(tmp_path / "out")) == [held]
    assert call(shared_run, photo.parent, "--out", tmp_path / "out", "--export", *FORMATS, "--overwrite") == 1
    assert path.read_bytes() != b"mine"


def test_photos_that_are_segmented_in_strips(shared_run, photos, tmp_path, monkeypatch):
    for name in ("whole", "strips"):
        assert call(shared_run, photos, "--out", tmp_path / name, "--export", *FORMATS) == 1
        monkeypatch.setattr("depthg.inference.photo_files.LARGE", (5000, 5000))
    whole, strips = tree(tmp_path / "whole"), tree(tmp_path / "strips")
    differ = {name for name in whole if whole[name] != strips[name]} - {"legend.json", "index.html"}
    assert whole.keys() == strips.keys() and differ <= {"labelstudio.json"}
    for first, second in zip(*(json.loads(files["labelstudio.json"]) for files in (whole, strips)), strict=True):
        scores = [task["predictions"][0].pop("score") for task in (first, second)]
        assert first == second and scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_the_void_of_a_legend_is_no_class(shared_run, photos, tmp_path):
    run = shutil.copytree(shared_run, tmp_path / "run")
    ids = Segmenter.load(run).predict(photos / "a.jpg").ids
    first, second = np.argsort(-np.bincount(ids.ravel()))[:2].tolist()
    (run / "legend.yaml").write_text(f"clusters:\n  {first}: null\n  {second}: thing\n")
    assert call(run, photos / "a.jpg", "--out", tmp_path / "out", "--export", *FORMATS) == 0
    known = read_classes(tmp_path / "out/voc/labelmap.txt")
    label = read_label(tmp_path / "out/voc/SegmentationClass/a.png", known.table, colours=known.colours)
    assert ((label < 0) == (ids == first)).all() and ((label == known.names.index("thing")) == (ids == second)).all()
    names = [category["name"] for category in json.loads((tmp_path / "out/coco.json").read_text())["categories"]]
    assert "thing" in names and "void" not in names and len(names) == len(known.names) == 10


def test_what_is_missing_or_unknown_is_said_before_any_work(shared_run, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("depthg.predict.find_photos", lambda *_: pytest.fail("work was done"))
    with pytest.raises(SystemExit):
        call(shared_run, photos, "--out", tmp_path / "out", "--export", "voc,pascal")
    assert "'pascal' is not one of the formats coco, yolo" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(SystemExit):
        call(shared_run, photos, "--out", tmp_path / "out", "--export", "coco")
    assert "coco needs pycocotools: python -m pip install 'depthg[export]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_whole_files_only(shared_run, photos, tmp_path, monkeypatch, capsys):
    def full(path, content):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("depthg.inference.exports.masks.write_archive", full)
    assert call(shared_run, photos, "--out", tmp_path / "out", "--export", "cvat") == 1
    assert "No space left" in capsys.readouterr().err
    assert all(name.startswith("ids/") for name in tree(tmp_path / "out"))


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    """A run on photos without labels, at their size, and its exports."""
    folder = tmp_path_factory.mktemp("loop")
    root = write_camvid(folder / "camvid")
    options = ("data=folder", f"data.root={root / 'val'}", "n_classes=5", "depth.source=none", "sampling=random")
    train(settings(root, *options, "name=bare", f"runs_dir={folder}", "val.panels=0", "batch_size=2"))
    assert call(folder / "bare", root / "val", "--out", folder / "out", "--export", *FORMATS) == 0
    return folder


def corrected(folder, kind):
    """Folder of masks and file of classes, as a tool gives them back."""
    if kind == "voc":
        return folder / "out/voc/SegmentationClass", folder / "out/voc/labelmap.txt"
    if kind == "cvat":
        with zipfile.ZipFile(folder / "out" / "cvat.zip") as archive:
            archive.extractall(folder / "cvat")
        return folder / "cvat/SegmentationClass", folder / "cvat/labelmap.txt"
    tasks = json.loads((folder / "out" / "labelstudio.json").read_text())
    for number, task in enumerate(tasks):  # somebody accepts each prediction
        task |= {"id": number, "annotations": [{"was_cancelled": False, "result": task["predictions"][0]["result"]}]}
    (folder / "project.json").write_text(json.dumps(tasks))
    write_label_maps(folder / "project.json", folder / "studio", folder / "out" / "labelstudio.xml")
    return folder / "studio/labels", folder / "studio/classes.txt"


@pytest.mark.parametrize("kind", ["voc", "cvat", "labelstudio"])
def test_masks_without_corrections_score_all_pixels(unlabelled, tmp_path, kind):
    labels, classes = corrected(unlabelled, kind)
    root = unlabelled / "camvid" / "val"
    overrides = [f"data.root={root}", f"data.labels={labels}", f"data.classes={classes}", "data.held_out=false"]
    found = evaluate(load_run(unlabelled / "bare", overrides=overrides), QUICK)[0]
    assert found.results["cluster"]["accuracy"] == 100
    assert np.array(found.results["cluster"]["confusion"]).sum() == 3 * 64 * 64
    worse = tmp_path / "labels"
    shutil.copytree(labels, worse)
    for path in worse.glob("*.png"):
        image = Image.open(path)
        image.paste(image.getpixel((0, 0)), (32, 32, 64, 64))
        image.save(path)
    overrides[1] = f"data.labels={worse}"
    found = evaluate(load_run(unlabelled / "bare", overrides=overrides), QUICK)[0]
    assert found.results["cluster"]["accuracy"] < 100
