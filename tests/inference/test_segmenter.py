"""A tiny trained run on photos of any size: in order, at their size, and as evaluation where both see the same."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from depthg.data.camvid import CLASSES, CamVid
from depthg.data.colours import class_palette
from depthg.data.files import DataError
from depthg.evaluation.metrics import confusion_matrix
from depthg.evaluation.one_pass import EvaluationPass, Variant, probe_read_outs
from depthg.inference.crf import crf_ids
from depthg.inference.read_outs import predict_ids
from depthg.inference.segmenter import Segmentation, Segmenter
from depthg.inference.windows import scaled
from depthg.model.loaded_run import load_run


@pytest.fixture
def run(shared_run):
    return shared_run


@pytest.fixture(scope="module")
def segmenter(shared_run):
    return Segmenter.load(shared_run, device="cpu")


def photo(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def test_a_photo_of_evaluation_size_gives_what_evaluation_gives(segmenter, run, shared_tree):
    image = np.array(Image.open(shared_tree / "val" / "000.png"))
    loaded = load_run(run)
    codes = loaded.codes(loaded.features(torch.from_numpy(image).permute(2, 0, 1)[None] / 255))
    expected = predict_ids(loaded.cluster(codes), (8, 8), (64, 64))[0].numpy()
    found = segmenter.predict(image)
    assert isinstance(found, Segmentation) and found.ids.dtype == np.uint8 and found.probabilities is None
    assert (found.ids == expected).mean() > 0.999
    assert len(set(np.unique(found.ids))) > 1


@pytest.mark.parametrize("crf", [False, True])
def test_flip_gives_the_ids_that_evaluation_counts(run, shared_tree, monkeypatch, crf):
    """Confusion matrices of the evaluation's pass and of the ids of ``predict``, photo by photo."""
    loaded = load_run(run)
    network, transform = loaded.backbone, loaded.transform

    def exact(self, images):  # evaluation rounds features as the cache of the training does, predict does not
        return transform(network(images).flatten(2).transpose(1, 2).float())

    monkeypatch.setattr(type(loaded), "features", exact)
    split = CamVid(shared_tree).val
    counting = EvaluationPass(loaded, probe_read_outs(loaded), [Variant(True, crf)], 11)
    counts = counting.over(split, [(64, 64)])[(64, 64), Variant(True, crf), "cluster"]
    both, plain = Segmenter(loaded, flip=True), Segmenter(loaded)
    changed = 0
    for number, expected in enumerate(counts):
        image, label = split.image(number), split.label(number)
        found = both.predict(image, crf=crf).ids
        assert np.abs(confusion_matrix(found.astype(np.int64), label, 11, 11) - expected).sum() <= 2, (
            "ties in the last bit"
        )
        changed += (plain.predict(image, crf=crf).ids != found).sum()
    assert len(counts) == 3 and changed > 10, "averaging changes ids"


@pytest.mark.parametrize("window", ["resize", 64])
def test_flip_of_a_mirrored_photo_gives_mirrored_ids(segmenter, window):
    image = photo(64, 96) if window == "resize" else photo(64, 160)
    both = Segmenter(segmenter.run, window, flip=True)
    one, other = both.predict(image).ids, both.predict(np.ascontiguousarray(image[:, ::-1])).ids
    assert (one == other[:, ::-1]).mean() > 0.999
    plain = Segmenter(segmenter.run, window)
    assert (plain.predict(image).ids == plain.predict(np.ascontiguousarray(image[:, ::-1])).ids[:, ::-1]).mean() < 0.99


def test_probabilities_are_those_of_up_sampled_codes(segmenter, run):
    image, loaded = photo(90, 120), load_run(run)
    found = segmenter.predict(image, probabilities=True)
    pixels = torch.from_numpy(scaled(image, (64, 96), "antialias"))
    codes = loaded.codes(loaded.features(pixels.permute(2, 0, 1)[None] / 255))[0].T.unflatten(1, (8, 12))
    maps = F.normalize(F.interpolate(codes[None].double(), (90, 120), mode="bilinear"), dim=1)[0]
    cosines = torch.einsum("khw,nk->nhw", maps, F.normalize(loaded.cluster.centroids.double(), dim=1))
    np.testing.assert_allclose(found.probabilities, (2 * cosines).softmax(0).numpy(), atol=1e-4)
    assert found.probabilities.dtype == np.float32 and (found.probabilities.argmax(0) == found.ids).mean() > 0.999


@pytest.mark.parametrize("window", ["resize", 64, 96])
@pytest.mark.parametrize("size", [(64, 64), (7, 9), (1, 1), (301, 60), (50, 900), (130, 129)])
def test_any_size_comes_back_at_its_size(run, segmenter, window, size):
    found = Segmenter(segmenter.run, window).predict(photo(*size))
    assert found.ids.shape == size and found.ids.max() < 11


@pytest.fixture
def batches(segmenter, monkeypatch):
    """Shapes of what goes through the backbone."""
    shapes, kind = [], type(segmenter.run.backbone)
    stage_maps = kind.stage_maps

    def spy(self, images):
        shapes.append(tuple(images.shape))
        return stage_maps(self, images)

    monkeypatch.setattr(kind, "stage_maps", spy)
    return shapes


@pytest.mark.parametrize("way", ["_side_by_side", "_pipelined"])
def test_many_photos_come_in_order_and_equal_single_ones(segmenter, monkeypatch, way):
    images = [photo(*size, seed=i) for i, size in enumerate([(64, 64), (64, 64), (80, 120), (64, 64), (300, 40)] * 3)]
    single = [segmenter.predict(image).ids for image in images]
    monkeypatch.setattr(Segmenter, "stream", getattr(Segmenter, way))
    threads = torch.get_num_threads()
    for batch in (1, 3, 8):
        found = [result.ids for result in Segmenter(segmenter.run, batch=batch).predict_many(iter(images))]
        assert len(found) == len(images)
        for a, b in zip(found, single, strict=True):
            assert a.shape == b.shape and (a == b).mean() > 0.995  # sums of another batch differ in the last bit
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("way", ["_side_by_side", "_pipelined"])
def test_errors_keep_their_place_or_stop_everything(segmenter, tmp_path, way):
    (tmp_path / "a.png").write_bytes(b"no image")
    images = [photo(64, 64), tmp_path / "a.png", photo(64, 64), photo(90, 64), tmp_path / "a.png"]
    found = list(getattr(segmenter, way)(images, lambda photo, maps: photo.image.shape[0]))
    assert [f if isinstance(f, int) else type(f) for f in found] == [64, DataError, 64, 90, DataError]

    def full(photo, maps):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        list(getattr(segmenter, way)([photo(64, 64)] * 20, full))
    assert list(getattr(segmenter, way)([], full)) == []


def test_windows_are_batched_and_blended(segmenter, batches):
    by_size, image = Segmenter(segmenter.run, 64, batch=4), photo(128, 192)
    prepared = by_size.prepare(image)
    (maps,) = by_size.maps([prepared])
    assert len(prepared.plan.corners) == 3 * 4 and batches == [(4, 3, 64, 64)] * 3
    assert maps.codes.shape == (8, 16, 24) and maps.scores.shape == (11, 16, 24)
    first = torch.from_numpy(image[:64, :64].copy()).permute(2, 0, 1)[None] / 255
    whole = segmenter.run.codes(segmenter.run.features(first))
    corner = whole[0].T.unflatten(1, (8, 8))[:, :2, :1].numpy()  # seen by the first window alone
    np.testing.assert_allclose(maps.codes[:, :2, :1], corner, atol=1e-2)  # `features` rounds to float16


def test_photos_of_one_batch_share_a_forward_pass(segmenter, batches):
    images = [photo(64, 64)] * 6 + [photo(128, 64)] + [photo(64, 64)]
    assert list(Segmenter(segmenter.run, batch=4)._pipelined(images, lambda photo, maps: 1)) == [1] * 8
    assert batches == [(4, 3, 64, 64), (2, 3, 64, 64), (1, 3, 128, 64), (1, 3, 64, 64)]


def test_names_and_colours_come_from_the_matching(segmenter, run, tmp_path):
    assignment, classes = segmenter.run.assignment, segmenter.run.classes
    assert segmenter.names == tuple(classes[c] for c in assignment) and len(set(segmenter.names)) == 11
    other = load_run(run)
    other.assignment = np.array([-1, 3, 3, *assignment[3:-1], -1])
    found = Segmenter(other)
    assert found.names[:3] == ("cluster 0", "road", "road") and found.names[-1] == "cluster 10"
    assert (found.colours[1] == found.colours[2]).all()
    rows = {tuple(colour) for colour in found.colours}
    assert len(rows) == len(set(found.names)), "clusters without a class have colours of their own"
    other.assignment = None
    plain = Segmenter(other)
    assert plain.names[4] == "cluster 4" and (plain.colours == class_palette(11)).all()


def test_colours_of_the_data_set(segmenter, shared_run, tmp_path):
    run = shutil.copytree(shared_run, tmp_path / "run")
    path = run / "metrics.json"
    text = path.read_text()
    camvid = list(CLASSES.values())
    assert segmenter.colours.tolist() == [list(camvid[c]) for c in segmenter.run.assignment]
    palette = [[i, 2 * i, 3 * i] for i in range(11)]
    path.write_text(json.dumps({**json.loads(text), "palette": palette}))
    found = Segmenter(load_run(run))
    assert found.colours.tolist() == [palette[c] for c in found.run.assignment]
    path.write_text(json.dumps({**json.loads(text), "palette": [[0, 0, 999]]}))
    assert (Segmenter(load_run(run)).colours == class_palette(11)[found.run.assignment]).all()


def test_crf_follows_the_edges_of_the_photo(segmenter):
    image = photo(60, 80)
    plain, refined = (segmenter.predict(image, crf=crf).ids for crf in (False, True))
    assert refined.shape == (60, 80) and refined.dtype == np.uint8 and (plain != refined).any()


def test_large_photos_are_refined_at_a_smaller_size(segmenter, monkeypatch):
    image, sizes = photo(60, 80), []
    refine = crf_ids
    monkeypatch.setattr(
        "depthg.inference.segmenter.crf_ids", lambda image, maps: sizes.append(image.shape) or refine(image, maps)
    )
    whole = segmenter.predict(image, crf=True).ids
    monkeypatch.setattr("depthg.inference.segmenter.CRF_PIXELS", 60 * 80 // 4)
    found = segmenter.predict(image, crf=True).ids
    assert sizes == [(60, 80, 3), (30, 40, 3)] and found.shape == (60, 80)
    assert np.array_equal(found, found[::2, ::2].repeat(2, 0).repeat(2, 1)) and (found == whole).mean() > 0.9


def test_bad_photos_and_settings(segmenter, run, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png"):
        segmenter.predict(tmp_path / "a.png")
    for window in (31, 0, -5, "large", True):
        with pytest.raises(ValueError, match="window="):
            Segmenter(segmenter.run, window)
    with pytest.raises(ValueError, match="batch=0"):
        Segmenter(segmenter.run, batch=0)
    with pytest.raises(FileNotFoundError, match="no best checkpoint"):
        Segmenter.load(run, checkpoint="best")
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        Segmenter.load(tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("window", ["resize", 64])
def test_a_gpu_gives_the_ids_of_the_cpu(run, window):
    image = photo(150, 200)
    cpu, gpu = (Segmenter.load(run, device=device, window=window).predict(image) for device in ("cpu", "cuda"))
    assert (cpu.ids == gpu.ids).mean() > 0.97  # the backbone runs in bfloat16 there
