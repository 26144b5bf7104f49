"""A photo in strips: the ids, probabilities and files are those of the photo as a whole, and memory is bounded."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from depthg.inference import overlays, photo_files
from depthg.inference import segmenter as whole
from depthg.inference.scaling import scaled_blocks
from depthg.inference.segmenter import Segmenter
from depthg.inference.strips import ArraySource, Picture, RowBlocks, segment
from depthg.inference.windows import blend, cut, cut_rows, layout, scaled
from depthg.kernels.fps import compiled_cuda_runs
from depthg.kernels.upsampling import needed_cells, up_sampled_ids
from depthg.predict import main


@pytest.fixture
def one_thread():
    """The network's last bits depend on the number of threads, which differs between small photos and large ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def photo(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def blocks_of(image, rows):
    return (image[start : start + rows] for start in range(0, len(image), rows))


@pytest.mark.parametrize("interpolation", ["antialias", "nearest"])
def test_rows_are_scaled_to_the_bytes_of_the_whole(interpolation):
    rng = np.random.default_rng(0)
    sizes = [tuple(int(n) for n in rng.integers(3, 300, 4)) for _ in range(30)]
    for height, width, h, w in [*sizes, (301, 203, 301, 100), (301, 203, 40, 203), (203, 101, 200, 96), (5, 5, 5, 5)]:
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for rows in (1, 7, 1000):
            parts = list(scaled_blocks(blocks_of(image, rows), (height, width), (h, w), interpolation))
            assert (np.concatenate(parts) == scaled(image, (h, w), interpolation)).all(), (height, width, h, w, rows)


@pytest.mark.parametrize("size", [(200, 333), (64, 300), (40, 50)])
def test_windows_of_rows_are_those_of_the_whole(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    plan = layout(size, (64, 64), 64, 8, 32)
    image = scaled(image, plan.size, "antialias")
    for rows in (1, 13, 1000):
        for found, expected in zip(cut_rows(blocks_of(image, rows), plan), cut(image, plan), strict=True):
            assert (found == expected).all()


def test_strips_are_blended_as_the_definition_says():
    corners = [(top, left) for top in (0, 5, 9, 12) for left in (0, 4)]
    parts = torch.rand(len(corners), 3, 8, 8)
    ramp = torch.tensor([1.0, 2, 3, 4, 4, 3, 2, 1])
    total, weights = torch.zeros(3, 20, 12), torch.zeros(20, 12)
    for part, (top, left) in zip(parts, corners, strict=True):
        total[:, top : top + 8, left : left + 8] += part * torch.outer(ramp, ramp)
        weights[top : top + 8, left : left + 8] += torch.outer(ramp, ramp)
    assert torch.equal(blend(parts, corners, (20, 12)), total / weights)


@pytest.mark.parametrize("impl", ["cpp", "eager"])
@pytest.mark.parametrize(
    ("n", "cells", "size"), [(5, (17, 9), (100, 70)), (300, (9, 8), (40, 31)), (4, (50, 30), (21, 9))]
)
def test_ids_of_some_rows(impl, n, cells, size):
    maps = np.random.default_rng(0).normal(size=(n, *cells)).astype(np.float32)
    expected = up_sampled_ids(maps, size, impl="cpp")
    for rows in [(0, size[0]), (0, 1), (3, 20), (size[0] - 1, size[0])]:
        low, high = needed_cells(cells[0], size[0], rows)
        part = maps[:, low:high]
        found = up_sampled_ids(part, size, impl=impl, rows=rows, first=low, cells=cells[0])
        assert found.dtype == expected.dtype and (found == expected[slice(*rows)]).all()
        if high - low > 1:
            with pytest.raises(ValueError, match="need the cells"):
                up_sampled_ids(part[:, 1:], size, impl=impl, rows=rows, first=low + 1, cells=cells[0])
    for rows in ((3, 3), (-1, 4), (0, size[0] + 1)):
        with pytest.raises(ValueError, match="are no rows of an image"):
            up_sampled_ids(maps, size, impl=impl, rows=rows)


@pytest.mark.parametrize(("cells", "pixels"), [(10, 100), (100, 10), (7, 7), (1, 50)])
def test_blocks_of_rows_come_once_with_their_cells(cells, pixels):
    maps, blocks, done = np.arange(cells)[None, :, None].repeat(2, 2), RowBlocks(cells, pixels, 16), 0
    for start in range(0, cells, 3):
        for part, first, rows in blocks.push(maps[:, start : start + 3]):
            low, high = needed_cells(cells, pixels, rows)
            assert rows[0] == done and (first, first + part.shape[1]) == (low, high)
            assert part[0, :, 0].tolist() == list(range(low, high))
            done = rows[1]
    assert done == pixels


@pytest.mark.parametrize("window", [64, "resize"])
@pytest.mark.parametrize("pixels", [2**21, 2**13])
def test_a_photo_in_strips_is_the_photo(shared_run, window, pixels, monkeypatch):
    monkeypatch.setattr(whole, "CRF_PIXELS", pixels)
    segmenter = Segmenter.load(shared_run, device="cpu", window=window, batch=3)
    for size in ((301, 149), (90, 70)):
        image = photo(*size)
        for crf in (False, True):
            expected = segmenter.predict(image, probabilities=True, crf=crf)
            ids, likely, scores = np.full(size, 255, np.uint8), np.full((11, *size), -1, np.float32), []
            picture = Picture(size, (20, 30))

            def keep(start, rows, out=ids):
                out[start : start + len(rows)] = rows

            def keep_likely(start, rows, out=likely):
                out[:, start : start + rows.shape[1]] = rows

            found = {"probabilities": keep_likely, "scores": scores.append, "pictures": [picture]}
            segment(segmenter, ArraySource(image), keep, crf=crf, **found)
            assert (ids == expected.ids).all() and (likely == expected.probabilities).all()
            assert (np.concatenate(scores, 1) == segmenter.maps([segmenter.prepare(image)])[0].scores).all()
            assert (picture.image == scaled(image, (20, 30), "antialias")).all()


@pytest.mark.parametrize("line", [0, 3])
def test_overlays_in_strips_are_those_of_the_whole(line, monkeypatch):
    rng = np.random.default_rng(0)
    image, colours = photo(70, 50), rng.integers(0, 256, (6, 3), dtype=np.uint8)
    ids = np.kron(rng.integers(0, 6, (14, 10)), np.ones((5, 5), int)).astype(np.uint8)
    expected = overlays.overlay(image, ids, colours)
    if line:
        overlays.draw_outlines(expected, ids, colours, line)
    for rows in (1, 4, 64, 500):
        monkeypatch.setattr(overlays, "STRIP", rows)
        found = Image.new("RGB", (50, 70))
        overlays._draw_strips(found, image, ids, colours, line)
        assert (np.asarray(found) == expected).all()
        assert (overlays.pixels_of(ids, 6) == np.bincount(ids.ravel(), minlength=6)).all()


@pytest.mark.parametrize("crf", ["--crf", "--no-crf"])
def test_files_of_large_photos_are_those_of_small_ones(shared_run, tmp_path, crf, monkeypatch, one_thread):
    (tmp_path / "photos").mkdir()
    Image.fromarray(photo(301, 149)).save(tmp_path / "photos" / "a.png")
    Image.fromarray(photo(90, 70, 1)).save(tmp_path / "photos" / "b.png")
    (tmp_path / "photos" / "c.jpg").write_bytes(b"no photo")
    apart = []

    def large(*arguments):
        apart.append(arguments[1].name)
        return predict_large(*arguments)

    predict_large = photo_files.predict_large
    monkeypatch.setattr(photo_files, "predict_large", large)
    for name, limit in (("small", 2**24), ("large", 20_000)):
        monkeypatch.setattr(photo_files, "LARGE", (limit, limit))
        options = ["--window", "64", "--device", "cpu", "--probabilities", "--overlay", "png", crf]
        assert main([str(shared_run), str(tmp_path / "photos"), "--out", str(tmp_path / name), *options]) == 1
    assert apart == ["a"]
    found = sorted(path.relative_to(tmp_path / "small") for path in (tmp_path / "small").rglob("*.*"))
    assert len(found) == 8
    for path in found:
        small, large = tmp_path / "small" / path, tmp_path / "large" / path
        if path.suffix == ".npz":
            with np.load(small) as one, np.load(large) as other:
                assert (one["probabilities"] == other["probabilities"]).all() and one[
                    "probabilities"
                ].dtype == np.float16
                assert (one["names"] == other["names"]).all() and set(one) == set(other)
        else:
            assert small.read_bytes() == large.read_bytes(), path
    legend = json.loads((tmp_path / "large" / "legend.json").read_text())
    assert [entry["photo"][-5:] for entry in legend["photos"]] == ["a.png", "b.png"]


def test_a_photo_is_read_again_when_its_memory_was_freed():
    image, reads = photo(9, 7), []

    def again():
        reads.append(1)
        return image

    source = ArraySource(image, again)
    source.close()
    assert not reads and (source.rows(2, 5) == image[2:5]).all() and source.image is image and len(reads) == 1
    source = ArraySource(image)
    source.close()
    assert source.image is image


def test_predict_imports_no_compiler():
    code = "import sys, depthg.predict; print([m for m in ('torch._dynamo', 'triton', 'sympy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    assert torch.compiler.assume_constant_result(lambda: 1)._dynamo_marked_constant is True
    assert compiled_cuda_runs._dynamo_marked_constant is True


PEAK = """
import resource, sys
from depthg.predict import main
status = main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(status)
"""


def peak(*arguments):  # KiB
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, arguments)], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are counted in other units")
@pytest.mark.parametrize("crf", ["--crf", "--no-crf"])
def test_memory_of_large_photos(shared_run, tmp_path, crf):
    """Bytes per pixel beyond a small photo's process, and no more for two of them."""
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(photo(4000, 5000)).save(tmp_path / name, quality=90)
    Image.fromarray(photo(300, 400)).save(tmp_path / "small.jpg")
    run = [shared_run, "--device", "cpu", "--window", 448, crf]
    small = peak(*run, tmp_path / "small.jpg", "--out", tmp_path / "one")
    one = peak(*run, tmp_path / "a.jpg", "--out", tmp_path / "two")
    both = peak(*run, tmp_path / "a.jpg", tmp_path / "b.jpg", "--out", tmp_path / "three")
    bound = small + 18 * 4000 * 5000 / 1024 + (200 * 1024 if crf == "--crf" else 0)
    print(small, one, both, bound)
    assert one < bound and both < bound
