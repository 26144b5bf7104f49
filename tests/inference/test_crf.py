"""Unary terms of the dense CRF, and refined ids; the filter has its own tests (``tests/kernels/test_dense_crf.py``)."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from depthg.inference import crf
from depthg.inference.crf import (
    LEAST_PROBABILITY,
    cosines,
    crf_ids,
    crf_ids_of_images,
    log_softmax,
    probe_log_probabilities,
    upsample,
)
from depthg.kernels import dense_crf


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


# ---- ids


def test_both_probes_are_refined_and_probabilities_are_at_least_one_in_a_hundred_thousand(monkeypatch):
    image, maps = scene()[0], maps_of(3, 7)
    maps["linear.scores"] *= 30
    terms = probe_log_probabilities(maps, image.shape[:2])
    assert terms["linear"].min() < np.log(LEAST_PROBABILITY) - 10
    seen = []
    monkeypatch.setattr(crf, "dense_crf", lambda unary, *a, **k: seen.extend(unary) or dense_crf(unary, *a, **k))
    found = crf_ids(image, maps)
    assert found.keys() == {"linear", "cluster"}
    for (name, term), unary in zip(terms.items(), seen, strict=True):
        assert unary.max() <= -np.log(1e-5) + 1e-5
        clipped = -np.maximum(term, np.float32(np.log(1e-5)))
        np.testing.assert_array_equal(unary[0], clipped)
        np.testing.assert_array_equal(found[name], dense_crf(clipped, image).argmax(0))


@pytest.mark.parametrize("threads", [None, 1, 2, 5])
def test_images_together_give_what_each_gives_alone(threads):
    jobs = [(scene(seed=seed)[0], maps_of(5, 9, seed=seed)) for seed in range(3)]
    before = torch.get_num_threads()
    for job, answer in zip(jobs, crf_ids_of_images(jobs, threads), strict=True):
        expected = crf_ids(*job)
        assert answer.keys() == expected.keys() == {"linear", "cluster"}
        for name in expected:
            np.testing.assert_array_equal(answer[name], expected[name])
    assert torch.get_num_threads() == before


def test_without_compiled_code_the_error_says_what_to_install(monkeypatch):
    assert crf.available()
    crf.check_available()
    monkeypatch.setattr("depthg.kernels.checks._extension.HAS_CPU", False)
    assert not crf.available()
    with pytest.raises(ImportError, match=r"the CRF cannot run: .*C\+\+ compiler"):
        crf.check_available()
