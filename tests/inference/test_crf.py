"""The dense CRF against a mean field over all pairs of pixels, its unary terms, and its worker processes."""

import os
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import depthg.inference.crf
from depthg.inference.crf import CrfSettings, cosines, crf_ids, log_softmax, probe_log_probabilities, refine, upsample
from depthg.inference.crf_pool import CrfPool

try:
    import pydensecrf.densecrf  # noqa: F401

    missing = False
except ImportError:
    missing = True
needs_crf = pytest.mark.skipif(missing, reason="pydensecrf2 is not installed (pip install 'depthg[crf]')")


def dense_mean_field(image, log_probabilities, settings=CrfSettings()):  # noqa: B008
    """Marginals [n, H, W] in float64 with the full N x N kernel matrices, normalised symmetrically."""
    height, width, _ = image.shape
    rows, columns = np.mgrid[:height, :width]
    place, colour = np.stack([rows, columns], -1).reshape(-1, 2).astype(float), image.reshape(-1, 3).astype(float)
    apart = np.square(place[:, None] - place[None]).sum(-1)
    unlike = np.square(colour[:, None] - colour[None]).sum(-1)
    near = np.exp(-apart / (2 * settings.gaussian_sxy**2))
    alike = np.exp(-apart / (2 * settings.bilateral_sxy**2) - unlike / (2 * settings.bilateral_srgb**2))
    message = 0
    for weight, kernel in ((settings.gaussian_weight, near), (settings.bilateral_weight, alike)):
        scale = 1 / np.sqrt(kernel.sum(1))
        message = message + weight * scale[:, None] * kernel * scale
    unary = log_probabilities.reshape(len(log_probabilities), -1).astype(float)
    q = np.exp(log_softmax(unary.copy()))
    for _ in range(settings.iterations):
        q = np.exp(log_softmax(unary + q @ message))
    return q.reshape(log_probabilities.shape)


def scene(n=5, side=24, noise=2.0, seed=0):
    """A photo of three flat regions under noise, and log-probabilities that follow a coarse random map."""
    rng = np.random.default_rng(seed)
    image = np.zeros((side, side + 4, 3))
    image[:], image[side // 2 :] = (180, 190, 200), (60, 70, 60)
    image[side // 4 : side // 2 + 3, side // 4 : side // 2] = (150, 90, 60)
    image = (image + rng.normal(0, noise, image.shape)).clip(0, 255).astype(np.uint8)
    coarse = upsample(rng.normal(size=(n, 3, 4)).astype(np.float32) * 2, image.shape[:2])
    return image, log_softmax(coarse + rng.normal(0, 0.5, coarse.shape).astype(np.float32))


def maps_of(n_linear, n_cluster, grid=(4, 5), dim=6, seed=0):
    rng = np.random.default_rng(seed)
    centroids = rng.normal(size=(n_cluster, dim)).astype(np.float32)
    return {
        "linear.scores": rng.normal(size=(n_linear, *grid)).astype(np.float32),
        "cluster.codes": rng.normal(size=(dim, *grid)).astype(np.float32),
        "cluster.centroids": centroids / np.linalg.norm(centroids, axis=1, keepdims=True),
    }


# ---- unary terms


@pytest.mark.parametrize("size", [(8, 10), (33, 40), (7, 9), (4, 5), (3, 2)])
def test_log_probabilities_equal_up_sampled_scores_and_codes(size):
    maps = maps_of(3, 7)
    found = probe_log_probabilities(maps, size)
    up = {
        key: F.interpolate(torch.from_numpy(maps[key])[None].double(), size, mode="bilinear", align_corners=False)[0]
        for key in ("linear.scores", "cluster.codes")
    }
    cosine = torch.einsum("nk,khw->nhw", torch.from_numpy(maps["cluster.centroids"]).double(),
                          F.normalize(up["cluster.codes"], dim=0))  # fmt: skip
    expected = {"linear": up["linear.scores"].log_softmax(0), "cluster": (2 * cosine).log_softmax(0)}
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], expected[name], atol=5e-6)


def test_cosine_of_codes_that_cancel_or_vanish_is_finite():
    codes = np.array([[[1.0, -1.0, 0.0, 0.0]]], np.float32)  # half-way between 1 and -1 the code is zero
    values = cosines(codes, np.ones((1, 1), np.float32), (1, 12))
    assert np.isfinite(values).all() and values.min() == -1 and values.max() == 1


# ---- inference


@needs_crf
@pytest.mark.parametrize(("n", "noise"), [(2, 0.0), (2, 2.0), (5, 2.0), (11, 2.0), (5, 4.0)])
def test_marginals_are_close_to_those_over_all_pairs(n, noise):
    """The lattice approximates the kernels. Over 36 such images (n 2, 5, 11; sides 16, 32, 48; noise 0 to 4) the mean
    difference was at most 0.015 and 96% or more of the pixels kept their class; the CRF moves them by 0.07 to 0.38."""
    image, term = scene(n, noise=noise)
    found, exact = refine(image, [term])[0], dense_mean_field(image, term)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    assert np.abs(found - exact).mean() < 0.015
    assert (found.argmax(0) == exact.argmax(0)).mean() > 0.96
    assert np.abs(np.exp(term) - exact).mean() > 0.06, "a case in which the CRF changes much"


@needs_crf
@pytest.mark.parametrize(
    "changes",
    [
        {"iterations": 1},
        {"gaussian_weight": 12.0, "bilateral_weight": 0.5},
        {"gaussian_sxy": 4.0, "bilateral_weight": 0.5},
        {"bilateral_weight": 0.5},
        {"bilateral_sxy": 4.0},
        {"bilateral_srgb": 200.0},
    ],
)
def test_every_setting_has_its_effect(changes):
    image, term = scene()
    settings = replace(CrfSettings(), **changes)
    found, exact = refine(image, [term], settings)[0], dense_mean_field(image, term, settings)
    error = np.abs(found - exact).mean()
    assert error < 0.02 and error < np.abs(found - dense_mean_field(image, term)).mean() / 4


def test_probabilities_are_at_least_one_in_a_hundred_thousand(monkeypatch):
    seen = []
    monkeypatch.setattr("depthg.inference.crf.refine", lambda image, terms, settings: seen.extend(terms) or terms)
    scores = np.zeros((2, 3, 4), np.float32)
    scores[1] = 30
    for settings, least in ((CrfSettings(), 1e-5), (CrfSettings(least_probability=1e-9), 1e-9)):
        crf_ids(np.zeros((6, 8, 3), np.uint8), {"linear.scores": scores}, settings)
        assert np.allclose(seen.pop()[0], np.log(least), rtol=1e-6)


@needs_crf
def test_probes_share_a_lattice_and_results_are_those_of_separate_ones(monkeypatch):
    image, first = scene(5)
    second, wider = scene(5, seed=1)[1], scene(7, seed=2)[1]
    alone = [refine(image, [term])[0] for term in (first, second, wider)]
    built, build = [], depthg.inference.crf._lattice
    monkeypatch.setattr(depthg.inference.crf, "_lattice", lambda image, n, s: built.append(n) or build(image, n, s))
    for one, other in zip(refine(image, [first, second, wider]), alone, strict=True):
        np.testing.assert_array_equal(one, other)
    assert built == [5, 7]


@needs_crf
def test_what_cannot_be_refined_is_refused():
    image, term = scene()
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\], got float64 \[24, 28, 3\]"):
        refine(image / 255, [term])
    with pytest.raises(ValueError, match=r"\[5, 24, 27\] do not fit the image \[24, 28, 3\]"):
        refine(image, [term[:, :, 1:]])
    with pytest.raises(ValueError, match="must be finite"):
        refine(image, [np.where(term < -3, -np.inf, term)])


def test_without_pydensecrf_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    for act in (lambda: refine(*scene()), CrfPool):
        with pytest.raises(ImportError, match=r"pip install 'depthg\[crf\]'"):
            act()


# ---- worker processes


@needs_crf
def test_worker_processes_give_what_one_process_gives():
    jobs = [(scene(side=side, seed=side)[0], maps_of(5, n, seed=n)) for side, n in ((16, 5), (24, 5), (33, 9))]
    with CrfPool(2) as pool:
        found = [future.result() for future in [pool.submit(*job) for job in jobs]]
        processes = [worker.process for worker in pool._pool.workers]
    for job, answer in zip(jobs, found, strict=True):
        expected = crf_ids(*job)
        assert answer.keys() == expected.keys() == {"linear", "cluster"}
        for name in expected:
            np.testing.assert_array_equal(answer[name], expected[name])
    assert all(process.returncode is not None for process in processes)


@needs_crf
def test_errors_in_a_worker_and_its_death_are_reported():
    image, maps = scene()[0], maps_of(5, 5)
    broken = {**maps, "linear.scores": np.full_like(maps["linear.scores"], np.nan)}
    with CrfPool(1) as pool:
        with pytest.raises(ValueError, match=r"the CRF failed: ValueError: .*must be finite"):
            pool.submit(image, broken).result()
        pool.submit(image, maps).result()  # the process lives on
        os.kill(pool._pool.workers[0].process.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"a CRF process ended \(exit code -9\) at an image of 24 x 28 pixels"):
            pool.submit(image, maps).result()
    with pytest.raises(ValueError, match="workers=0"):
        CrfPool(0)


@needs_crf
def test_leaving_the_block_does_not_wait_for_unfinished_images():
    image = scene(side=300)[0]
    with CrfPool(1) as pool:
        futures = [pool.submit(image, maps_of(27, 27)) for _ in range(20)]
    assert not any(future.done() and not future.cancelled() and future.exception() is None for future in futures[5:])
    assert all(process.returncode is not None for process in (worker.process for worker in pool._pool.workers))
