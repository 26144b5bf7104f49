"""Dense CRF: the compiled code against a slow lattice, the definition, its properties, and pydensecrf if installed."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from permutohedral import lattices, slow_mean_field

from depthg.kernels import CrfSettings, _extension, dense_crf, reference_crf

kernel = sys.modules["depthg.kernels.dense_crf"]  # the package has the function under this name
needs_extension = pytest.mark.skipif(not _extension.HAS_CPU, reason="depthg._C is not compiled")
IMPLS = [pytest.param("cpp", marks=needs_extension), "eager"]
GAUSSIAN, BILATERAL = CrfSettings(bilateral_weight=0), CrfSettings(gaussian_weight=0)


def photo(height, width, seed=0):
    """Noise over patches of colour, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (height // 6 + 1, width // 7 + 1, 3)).repeat(6, 0).repeat(7, 1)[:height, :width]
    return np.clip(patches * 0.5 + 60 + rng.normal(0, 4, patches.shape), 0, 255).astype(np.uint8)


def unary_term(classes, height, width, seed=0, batch=()):
    rng = np.random.default_rng(seed)
    p = np.moveaxis(rng.dirichlet(np.ones(classes), (*batch, height, width)), -1, len(batch))
    return -np.log(p + 1e-4).astype(np.float32)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# The lattice


@needs_extension
@pytest.mark.parametrize(
    "chosen",
    [
        CrfSettings(),
        CrfSettings(iterations=1),
        CrfSettings(iterations=0),
        GAUSSIAN,
        BILATERAL,
        CrfSettings(gaussian_sxy=3.3, gaussian_weight=1.5, bilateral_sxy=5, bilateral_srgb=13, bilateral_weight=10),
        CrfSettings(gaussian_sxy=0.3, bilateral_sxy=500, bilateral_srgb=200),
        CrfSettings(gaussian_weight=0, bilateral_weight=0),
    ],
)
def test_equals_the_slow_lattice(chosen):
    image, unary = photo(17, 22), unary_term(5, 17, 22)
    expected = slow_mean_field(unary, image, chosen)
    found = dense_crf(unary, image, chosen, impl="cpp")
    assert found.dtype == np.float32 and found.shape == unary.shape
    np.testing.assert_allclose(found, expected, atol=5e-5)
    assert abs(found.sum(0) - 1).max() < 1e-5
    before = np.exp(-unary) / np.exp(-unary).sum(0)
    moved = chosen.iterations and (chosen.gaussian_weight or chosen.bilateral_weight)
    assert (abs(found - before).max() > 0.2) == bool(moved)


@needs_extension
@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.lists(st.integers(1, 20), min_size=1, max_size=3), st.integers(0, 2**32),
    st.floats(0.3, 20), st.floats(1, 100), st.floats(1, 100), st.integers(0, 3),
)  # fmt: skip
def test_any_size_equals_the_slow_lattice(height, width, classes, seed, gaussian, bilateral, rgb, iterations):
    chosen = CrfSettings(iterations, gaussian, 3.0, bilateral, rgb, 4.0)
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    terms = [unary_term(n, height, width, seed + n) for n in classes]
    for unary, found in zip(terms, dense_crf(terms, image, chosen), strict=True):
        np.testing.assert_allclose(found, slow_mean_field(unary, image, chosen), atol=2e-4)


def test_the_slow_lattice_is_a_filter():
    """Its transpose blurs in the other order, and its variance is that of the Gaussian where points are dense."""
    image = photo(9, 10)
    for _, lattice in lattices(image, CrfSettings(bilateral_sxy=6, bilateral_srgb=60)):
        matrix = lattice(np.eye(90))
        np.testing.assert_allclose(lattice(np.eye(90), backwards=True), matrix.T, atol=1e-12)
        assert (matrix.diagonal() > 0).all() and matrix.min() > -1e-6
    y, x = np.mgrid[:40, :40]
    ((_, lattice),) = lattices(np.zeros((40, 40, 3), np.uint8), replace(GAUSSIAN, gaussian_sxy=4.0))
    impulse = np.zeros((1600, 1))
    impulse[20 * 40 + 20] = 1
    found = lattice(impulse).reshape(40, 40)
    centre, square = found.sum(), (found * ((y - 20) ** 2 + (x - 20) ** 2)).sum()
    assert abs(square / centre / 2 / 16 - 1) < 0.06  # the variance along an axis is that of the Gaussian


@needs_extension
def test_constants_stay_constant():
    """All classes alike: every message is, too."""
    image = photo(30, 41)
    found = dense_crf(np.full((4, 30, 41), 0.7, np.float32), image)
    np.testing.assert_allclose(found, 0.25, atol=1e-6)


# The definition


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_definition_written_out(dtype):
    """Sums over all pairs of pixels with Python numbers."""
    image, unary = torch.from_numpy(photo(3, 4)), torch.from_numpy(unary_term(2, 3, 4)).to(dtype)
    chosen = CrfSettings(2, 1.5, 0.7, 3.0, 20.0, 1.3)
    at = [(x, y, *image[y, x].tolist()) for y in range(3) for x in range(4)]

    def kernel_of(scales):
        k = [[np.exp(-sum(((a[i] - b[i]) / s) ** 2 for i, s in scales) / 2) for b in at] for a in at]
        return [[k[i][j] / np.sqrt(sum(k[i]) * sum(k[j])) for j in range(12)] for i in range(12)]

    kernels = (0.7, kernel_of([(0, 1.5), (1, 1.5)])), (1.3, kernel_of([(0, 3), (1, 3), (2, 20), (3, 20), (4, 20)]))
    energy = unary.double().reshape(2, 12).T.numpy()
    q = np.exp(-energy) / np.exp(-energy).sum(1, keepdims=True)
    for _ in range(2):
        logits = -energy + sum(w * np.array(k) @ q for w, k in kernels)
        q = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = reference_crf.dense_crf(unary, image, chosen)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.reshape(2, 12).T, q, atol=1e-5 if dtype == torch.float32 else 1e-12)


@needs_extension
def test_lattice_against_the_definition():
    """The lattice widens and narrows the Gaussian: marginals differ by a few hundredths, most ids are the same."""
    image = photo(60, 64)
    smooth = np.random.default_rng(0).dirichlet(np.ones(4), (10, 8)).repeat(6, 0).repeat(8, 1).transpose(2, 0, 1)
    unary = -np.log(smooth + 0.05).astype(np.float32)
    found, exact = (dense_crf(unary, image, CrfSettings(bilateral_srgb=10), impl=impl) for impl in ("cpp", "eager"))
    assert (found.argmax(0) == exact.argmax(0)).mean() > 0.95 and abs(found - exact).mean() < 0.03
    assert (unary.argmin(0) == exact.argmax(0)).mean() < 0.95  # most of what the CRF changes, both change


# Properties


@needs_extension
@pytest.mark.parametrize("size", [(37, 53), (1, 70), (130, 1), (16, 16)])
def test_threads_do_not_change_a_bit(size, threads):
    image, terms = photo(*size), [unary_term(27, *size), unary_term(11, *size, 1)]
    found = []
    for count in (1, 2, 5):
        threads(count)
        found.append(dense_crf(terms, image))
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))


@needs_extension
@pytest.mark.parametrize("size, classes", [((30, 41), (17,)), ((514, 517), (3, 9))])
def test_vertices_that_gather_and_large_images_have_the_same_bits(size, classes, threads):
    """More than two threads on one block gather at vertices; large images take one term after another."""
    image, terms = photo(*size), [unary_term(n, *size, n) for n in classes]
    found = []
    for count in (1, 2, 5, 1, 5):  # the lattice of places is used again, with lists and without
        threads(count)
        found.append(dense_crf(terms, image, CrfSettings(iterations=2)))
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))
    assert np.array_equal(found[0][-1], dense_crf(terms[-1], image, CrfSettings(iterations=2)))


@needs_extension
def test_counts_of_a_lattice():
    image = photo(12, 14)
    for kernel_settings, kernels in ((GAUSSIAN, (3.0, 1.0, 0.0)), (BILATERAL, (4.0, 67.0, 3.0))):
        ((_, lattice),) = lattices(image, kernel_settings)
        steps = [[1 - (lattice.d + 1) * (i == j) for i in range(lattice.d + 1)] for j in range(lattice.d + 1)]
        chained = sum(
            any(tuple(x + sign * y for x, y in zip(key, step, strict=True)) in lattice.ids for sign in (1, -1))
            for key in lattice.ids
            for step in steps
        )
        found = _extension.native.dense_crf_counts(12, 14, image.ctypes.data, kernels)
        assert list(found) == [len(lattice.ids), chained]


@needs_extension
def test_terms_together_and_alone_have_the_same_bits():
    image, terms = photo(33, 40), [unary_term(n, 33, 40, n) for n in (3, 20, 1, 8)]
    for term, found in zip(terms, dense_crf(terms, image), strict=True):
        assert np.array_equal(found, dense_crf(term, image))
    (only,) = dense_crf(terms[:1], image)
    assert np.array_equal(only, dense_crf(terms[0], image))
    assert (dense_crf(terms[2], image) == 1).all()  # one class


@pytest.mark.parametrize("impl", IMPLS)
def test_batches_are_images_one_by_one(impl, threads):
    images = np.stack([photo(12, 15, n) for n in range(5)])
    terms = [unary_term(n, 12, 15, n, (5,)) for n in (4, 9)]
    threads(2)
    found = dense_crf(terms, images, impl=impl)
    ids = dense_crf(terms, images, ids=True, impl=impl)
    for n in range(5):
        alone = dense_crf([x[n] for x in terms], images[n], impl=impl)
        for i in range(2):
            assert np.array_equal(found[i][n], alone[i]) and np.array_equal(ids[i][n], alone[i].argmax(0))
    empty = dense_crf([x[:0] for x in terms], images[:0], impl=impl)
    assert [x.shape for x in empty] == [(0, 4, 12, 15), (0, 9, 12, 15)]
    assert dense_crf(terms[0][:0], images[:0], ids=True, impl=impl).shape == (0, 12, 15)


@pytest.mark.parametrize("impl", IMPLS)
def test_order_of_images_and_of_classes(impl):
    images, unary = np.stack([photo(9, 8, n) for n in range(3)]), unary_term(5, 9, 8, 0, (3,))
    found = dense_crf(unary, images, impl=impl)
    assert np.array_equal(dense_crf(unary[[2, 0, 1]], images[[2, 0, 1]], impl=impl), found[[2, 0, 1]])
    turned = dense_crf(unary[:, [4, 2, 0, 1, 3]], images, impl=impl)
    np.testing.assert_allclose(turned, found[:, [4, 2, 0, 1, 3]], atol=1e-5)


@needs_extension
def test_what_an_earlier_call_left_changes_nothing():
    """Other sizes, settings and numbers of classes before; a lattice of places is used again for the same size."""
    image, unary = photo(20, 21), unary_term(6, 20, 21)
    first = dense_crf(unary, image)
    for chosen, size, classes in [
        (CrfSettings(gaussian_sxy=2), (20, 21), 40), (BILATERAL, (50, 9), 3), (GAUSSIAN, (21, 20), 2),
        (CrfSettings(), (20, 21), 6),
    ]:  # fmt: skip
        dense_crf(unary_term(classes, *size, 3), photo(*size, 4), chosen)
        assert np.array_equal(dense_crf(unary, image), first)
    kernel._kept.__dict__.clear()
    assert np.array_equal(dense_crf(unary, image), first)


@needs_extension
def test_large_memory_is_not_kept(monkeypatch):
    image, unary = photo(20, 21), unary_term(6, 20, 21)
    expected = dense_crf(unary, image)
    assert kernel._kept.memory.bytes() > 1000
    monkeypatch.setattr(kernel, "KEPT_BYTES", 1000)
    assert np.array_equal(dense_crf(unary, image), expected) and not hasattr(kernel._kept, "memory")


@pytest.mark.parametrize("impl", IMPLS)
def test_ids_are_the_arg_max_and_ties_go_to_the_lowest(impl):
    image, terms = photo(14, 19), [unary_term(n, 14, 19, n) for n in (2, 17)]
    for q, ids in zip(dense_crf(terms, image, impl=impl), dense_crf(terms, image, ids=True, impl=impl), strict=True):
        assert ids.dtype == np.int16 and np.array_equal(ids, q.argmax(0))
    if impl == "cpp":  # products of matrices may round equal classes apart
        assert (dense_crf(np.zeros((3, 14, 19), np.float32), image, ids=True, impl=impl) == 0).all()
        apart = np.stack([np.full((14, 19), 9, np.float32), *np.zeros((2, 14, 19), np.float32)])
        assert (dense_crf(apart, image, ids=True, impl=impl) == 1).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_images_of_one_pixel_and_of_one_colour(impl):
    one = dense_crf(np.array([[[1.0]], [[0.0]]], np.float32), np.zeros((1, 1, 3), np.uint8), impl=impl)
    logits = np.array([-1.0, 0.0])
    q = np.exp(logits) / np.exp(logits).sum()
    for _ in range(10):  # a message to itself, of all kernels
        q = np.exp(logits + 7 * q) / np.exp(logits + 7 * q).sum()
    np.testing.assert_allclose(one[:, 0, 0], q, atol=1e-5)
    plain = np.full((12, 13, 3), 255, np.uint8)
    unary = unary_term(3, 12, 13)
    np.testing.assert_allclose(dense_crf(unary, plain, impl=impl).sum(0), 1, atol=1e-5)
    if impl == "cpp":
        np.testing.assert_allclose(dense_crf(unary, plain), slow_mean_field(unary, plain, CrfSettings()), atol=5e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_tensors_and_arrays_of_any_layout(impl):
    image, unary = photo(10, 11), unary_term(4, 10, 11)
    expected = dense_crf(unary, image, impl=impl)
    frozen, frozen_image = unary.copy(), image.copy()
    frozen.flags.writeable = frozen_image.flags.writeable = False
    turned = np.ascontiguousarray(unary.transpose(2, 1, 0)).transpose(2, 1, 0)
    mirrored = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    for term, pixels in [(frozen, frozen_image), (turned, mirrored), (unary, torch.from_numpy(image))]:
        found = dense_crf(term, pixels, impl=impl)
        assert type(found) is np.ndarray and np.array_equal(found, expected)
    for term in (torch.from_numpy(unary), torch.from_numpy(unary).double(), torch.from_numpy(turned)):
        found = dense_crf(term, image, impl=impl)
        assert type(found) is torch.Tensor and found.dtype == torch.float32 and np.array_equal(found.numpy(), expected)
    assert np.array_equal(unary, frozen) and np.array_equal(image, frozen_image)  # inputs are left as they are
    mixed = dense_crf((unary, torch.from_numpy(unary)), image, impl=impl)
    assert [type(x) for x in mixed] == [np.ndarray, torch.Tensor]
    half = dense_crf(unary.astype(np.float16), image, impl=impl)
    np.testing.assert_allclose(half, expected, atol=0.05)


@needs_extension
def test_energies_far_apart():
    image = photo(11, 12)
    unary = np.zeros((3, 11, 12), np.float32)
    unary[1], unary[2] = 1e30, 3.4e38
    found = dense_crf(unary, image)
    assert (found[0] == 1).all() and (found[1:] == 0).all()
    assert (dense_crf(-unary, image)[2] == 1).all()
    strong = dense_crf(unary_term(3, 11, 12), image, CrfSettings(gaussian_weight=1e18, bilateral_weight=1e18))
    assert np.isfinite(strong).all()


ISAS = """
import numpy as np, sys
from depthg.kernels import dense_crf
from test_dense_crf import photo, unary_term
terms = [unary_term(n, 45, 61, n) for n in (27, 3, 8)]
np.savez(sys.argv[1], *dense_crf(terms, photo(45, 61)), *dense_crf(terms, photo(45, 61), ids=True))
"""


@needs_extension
def test_instruction_sets_give_the_same_bits(tmp_path):
    found, paths = {}, os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    for isa in ("baseline", "avx2", "avx512", ""):
        environment = {**os.environ, "DEPTHG_ISA": isa, "PYTHONPATH": paths}
        if not isa:
            del environment["DEPTHG_ISA"]
        path = tmp_path / f"{isa or 'best'}.npz"
        subprocess.run([sys.executable, "-c", ISAS, str(path)], env=environment, check=True)
        with np.load(path) as arrays:
            found[isa] = [arrays[name] for name in arrays.files]
    for arrays in found.values():
        assert all(np.array_equal(a, b) for a, b in zip(arrays, found[""], strict=True))


# pydensecrf


def pydensecrf_marginals(image, unary, chosen):
    densecrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2, the usual package, is not installed")
    classes, height, width = unary.shape
    crf = densecrf.DenseCRF2D(width, height, classes)
    crf.addPairwiseGaussian(sxy=chosen.gaussian_sxy, compat=chosen.gaussian_weight)
    crf.addPairwiseBilateral(
        sxy=chosen.bilateral_sxy,
        srgb=chosen.bilateral_srgb,
        rgbim=np.ascontiguousarray(image[..., ::-1]),
        compat=chosen.bilateral_weight,
    )
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(classes, -1)))
    return np.asarray(crf.inference(chosen.iterations)).reshape(unary.shape)


@needs_extension
@pytest.mark.parametrize(
    "chosen",
    [CrfSettings(), CrfSettings(1), CrfSettings(3, 2.5, 1.0, 30.0, 13.0, 6.0), CrfSettings(gaussian_sxy=0.4)],
)
@pytest.mark.parametrize("classes", [2, 11, 27])
def test_agrees_with_pydensecrf(chosen, classes):
    image, size = photo(150, 171, classes), (25, 29)
    probabilities = np.random.default_rng(classes).dirichlet(np.ones(classes), size).repeat(6, 0).repeat(6, 1)
    unary = -np.log(probabilities[:150, :171].transpose(2, 0, 1) + 1e-3).astype(np.float32)
    expected = pydensecrf_marginals(image, unary, chosen)
    found = dense_crf(unary, image, chosen)
    assert abs(found - expected).max() <= 2e-3
    assert (found.argmax(0) == expected.argmax(0)).mean() >= 0.9995


# Mistakes

IMAGE, UNARY = np.zeros((4, 5, 3), np.uint8), np.zeros((2, 4, 5), np.float32)


def changed(value):
    unary = UNARY.copy()
    unary[1, 2, 3] = value
    return unary


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "unary, image, error, message",
    [
        (changed(np.nan), IMAGE, ValueError, "unary holds values that are not finite"),
        (changed(np.inf), IMAGE, ValueError, "give a class of probability 0 a small one"),
        (changed(-np.inf), IMAGE, ValueError, "not finite"),
        (changed(1.0).astype(np.float64) * 1e39, IMAGE, ValueError, "not finite in float32"),
        ([UNARY, changed(np.nan)], IMAGE, ValueError, r"unary\[1\] holds values"),
        (UNARY[:, :3], IMAGE, ValueError, r"unary \[2, 3, 5\] does not fit the image \[4, 5, 3\]: .* \[L, 4, 5\]"),
        (UNARY[:0], IMAGE, ValueError, "at least one class"),
        (UNARY[None], IMAGE, ValueError, "does not fit the image"),
        (UNARY, IMAGE[None], ValueError, r"must be \[1, L, 4, 5\]"),
        (np.zeros((3, 2, 4, 5), np.float32), IMAGE[None], ValueError, "does not fit"),
        (UNARY[0], IMAGE, ValueError, "does not fit the image"),
        (UNARY, IMAGE[..., :2], ValueError, r"image must be \[H, W, 3\]"),
        (UNARY[:, :0], IMAGE[:0], ValueError, "at least one pixel"),
        (UNARY, IMAGE[0], ValueError, "image must be"),
        ([], IMAGE, ValueError, "empty sequence"),
        (UNARY.astype(np.int32), IMAGE, TypeError, "unary must be floating point, got torch.int32"),
        (UNARY, IMAGE.astype(np.float32), TypeError, "image must be uint8, got torch.float32"),
        (UNARY.tolist(), IMAGE, TypeError, r"unary\[0\] must be a tensor or an array, got list"),
        (UNARY, "photo.png", TypeError, "image must be a tensor or an array, got str"),
        (torch.zeros(2, 4, 5, requires_grad=True), IMAGE, ValueError, "requires grad.*detach"),
        (
            torch.zeros(2, 4, 5, device="meta"),
            IMAGE,
            ValueError,
            "on meta, but the CRF runs on the CPU; pass unary.cpu",
        ),
        (np.zeros((2**15, 1, 1), np.float32), IMAGE[:1, :1], ValueError, "at most 32767 classes"),
    ],
)
def test_bad_input(unary, image, error, message, impl):
    with pytest.raises(error, match=message):
        dense_crf(unary, image, impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"iterations": -1}, ValueError, "iterations must be at least 0, got -1"),
        ({"iterations": 2.5}, TypeError, "iterations must be an integer, got 2.5"),
        ({"iterations": True}, TypeError, "iterations must be an integer"),
        ({"gaussian_weight": -1.0}, ValueError, "gaussian_weight must be between 0 and 1e18, got -1.0"),
        ({"bilateral_weight": float("nan")}, ValueError, "bilateral_weight must be between"),
        ({"gaussian_sxy": 0.0}, ValueError, "gaussian_sxy must be between 1e-18 and 1e18, got 0.0"),
        ({"bilateral_sxy": -67.0}, ValueError, "bilateral_sxy must be between"),
        ({"bilateral_srgb": float("inf")}, ValueError, "bilateral_srgb must be between"),
    ],
)
def test_bad_settings(change, error, message, impl):
    with pytest.raises(error, match=message):
        dense_crf(UNARY, IMAGE, replace(CrfSettings(), **change), impl=impl)
    with pytest.raises(TypeError, match="settings must be CrfSettings, got dict"):
        dense_crf(UNARY, IMAGE, {}, impl=impl)


@needs_extension
def test_kernels_that_are_too_narrow():
    with pytest.raises(ValueError, match=r"bilateral_sxy or bilateral_srgb is too small for an image of 4 x 5"):
        dense_crf(UNARY, IMAGE, CrfSettings(bilateral_srgb=1e-3))
    with pytest.raises(ValueError, match="gaussian_sxy is too small"):
        dense_crf(UNARY, IMAGE, CrfSettings(gaussian_sxy=1e-9))
    dense_crf(UNARY, IMAGE, CrfSettings(gaussian_sxy=1e-9, gaussian_weight=0))
    image, unary, narrow = photo(8, 9), unary_term(3, 8, 9), CrfSettings(2, 1e-3, 1.0, 1.0, 0.1, 1.0)
    np.testing.assert_allclose(dense_crf(unary, image, narrow), slow_mean_field(unary, image, narrow), atol=1e-3)


def test_large_images_of_the_definition():
    with pytest.raises(ValueError, match="at most 16384 pixels, got 129 x 128"):
        dense_crf(np.zeros((2, 129, 128), np.float32), np.zeros((129, 128, 3), np.uint8), impl="eager")


def test_without_the_extension(monkeypatch):
    monkeypatch.setattr(_extension, "HAS_CPU", False)
    monkeypatch.setattr(kernel, "native", None)
    image, unary = photo(8, 9), unary_term(3, 8, 9)
    assert np.array_equal(dense_crf(unary, image), dense_crf(unary, image, impl="eager"))
    with pytest.raises(ValueError, match=r"impl=.cpp. cannot run: .* use impl=.eager."):
        dense_crf(unary, image, impl="cpp")
    with pytest.raises(ValueError, match="unknown impl 'cuda'"):
        dense_crf(unary, image, impl="cuda")
