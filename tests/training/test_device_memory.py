"""Evaluation and preparation on a GPU, pretended (pretend_cuda.py): bounded memory, the CPU's results, no atomics."""

import copy

import numpy as np
import pytest
import torch
from miniature import settings, write_camvid
from pretend_cuda import CPU, CUDA, OnDevice, pretend
from torch.nn import functional as F

from depthg.evaluation import scoring
from depthg.evaluation.metrics import confusion_matrix, image_confusions
from depthg.evaluation.scoring import confusions
from depthg.features import transform as features
from depthg.features.knn import nearest_neighbours
from depthg.features.preparation import Preparation
from depthg.features.prepared import EvaluationSet
from depthg.features.transform import FeatureTransform
from depthg.inference.read_outs import predict_ids
from depthg.kernels import _extension, upsampling
from depthg.kernels.upsampling import device_ids, products_of_weights, up_sampled_ids, up_sampled_scores
from depthg.model.clustering import assign, cosine_kmeans
from depthg.model.heads import LinearProbe, SegmentationHead, linear_probe_loss
from depthg.training.step import Model, Step

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which needs no pretence")
CLASSES, FRAME, CELLS = 27, (1024, 2048), (128, 256)
MB = 10**6
ATOMIC = {  # whose CUDA kernels add in an order that changes from run to run
    "upsample_bilinear2d_backward", "grid_sampler_2d_backward", "index_add", "index_add_", "embedding_dense_backward",
    "histc", "bincount", "cumsum", "scatter_reduce", "nll_loss2d_forward",
}  # fmt: skip


@pytest.mark.skipif(not _extension.HAS_CPU, reason="depthg._C is not compiled")
@pytest.mark.parametrize("block", [2**10, 2**23])
def test_ids_of_a_device_are_those_of_the_compiled_code(monkeypatch, block):
    monkeypatch.setattr(upsampling, "BLOCK_VALUES", block)
    rng = np.random.default_rng(0)
    sizes = [((28, 36), (90, 120)), ((40, 53), (41, 52)), ((60, 90), (7, 200)), ((13, 14), (3, 7)), ((1, 1), (3, 70))]
    for cells, size in sizes:
        scores = rng.normal(size=(CLASSES, *cells)).astype(np.float32)
        for values in (scores, np.round(scores)):  # with many ties
            found = device_ids(torch.from_numpy(values), size)
            assert found.dtype == torch.int64 and np.array_equal(found, up_sampled_ids(values, size))


def test_a_frame_with_27_classes_is_scored_in_bounded_memory():
    scores = torch.randn(1, CELLS[0] * CELLS[1], CLASSES)
    label = torch.randint(-1, CLASSES, (1, *FRAME))
    with pretend() as device:
        there, labels = OnDevice(scores), OnDevice(label)
        device.measure()
        ids = predict_ids(there, CELLS, FRAME)
        # ids twice, and for one block of rows both sides of a sum, a product, a sum, and (together) the scores along x
        assert device.peak < 2 * 8 * FRAME[0] * FRAME[1] + 5 * 4 * upsampling.BLOCK_VALUES < 210 * MB
        counts = [f(ids, labels, CLASSES, CLASSES) for f in (image_confusions, confusion_matrix)]
        assert device.peak < 300 * MB
    assert torch.equal(ids.values, predict_ids(scores, CELLS, FRAME)) and np.array_equal(counts[0][0], counts[1])


def test_a_split_of_large_frames_is_scored_in_bounded_memory(monkeypatch):
    rng, channels = np.random.default_rng(0), 96
    maps = rng.standard_normal((3, CELLS[0] * CELLS[1], channels)).astype(np.float16)
    labels = rng.integers(-1, CLASSES, (3, *FRAME), dtype=np.int16)
    data = EvaluationSet(maps, labels, CELLS, FRAME)
    head, seen = SegmentationHead(channels, 70), []
    torch.nn.init.normal_(head.linear.bias)
    centroids = F.normalize(torch.randn(CLASSES, 70), dim=1)
    head.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    counts = {}
    for where in (CPU, CUDA):
        with pretend() as device:
            there = copy.deepcopy(head).to(where)
            rows = OnDevice(centroids) if where == CUDA else centroids
            device.measure()
            counts[where] = confusions(data, there, {"cluster": (True, lambda x, c=rows: x @ c.T)}, CLASSES, where)
            if where == CUDA:
                assert 0 < device.peak < 700 * MB
    assert counts[CPU]["cluster"].sum() == (labels >= 0).sum() and seen == [2, 1] * 2
    assert np.abs(counts[CPU]["cluster"] - counts[CUDA]["cluster"]).sum() < 100  # pixels, of six million
    monkeypatch.setattr(scoring, "BATCH_VALUES", 1)
    seen.clear()
    with pretend():
        confusions(data, head, {}, CLASSES, CPU)
    assert seen == [1, 1, 1], "one frame at least"


def test_neighbours_in_tiles_of_a_device():
    vectors = torch.randint(-2, 3, (5000, 16)).float() / 8  # similarities without rounding, and with ties
    photos = torch.arange(5000) // 2
    expected = nearest_neighbours(vectors, 7, photos)
    with pretend() as device:
        there = OnDevice(vectors)
        device.measure()
        found = nearest_neighbours(there, 7, photos)
        assert device.peak < 200 * MB
        assert device.operations["mm"] == 6, "tiles of 2048 rows: six pairs, not ten times as many"
    assert torch.equal(found, expected)


def test_k_means_on_a_device():
    torch.manual_seed(0)
    x = torch.randn(40_000, 70) + 3 * torch.randn(CLASSES, 70)[torch.randint(CLASSES, (40_000,))]
    options = {"seed": 0, "n_init": 3, "iterations": 2}
    expected = cosine_kmeans(x, CLASSES, **options)
    with pretend() as device:
        there = OnDevice(x)
        device.measure()
        found = cosine_kmeans(there, CLASSES, **options)
        assert device.peak < 100 * MB  # unit vectors, 11 MB, and a block of cosines
        assert torch.equal(assign(there, found).values, assign(x, found.values))
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pca", [0, 5])
def test_the_transform_of_features_on_a_device(pca):
    chunks = [torch.randn(500, 24) * torch.linspace(0.1, 4, 24) + 1 for _ in range(4)]
    fitted = []
    for where in (CPU, CUDA):
        with pretend() as device:
            transform = FeatureTransform((16, 8), pca).to(where)
            transform.fit(lambda w=where: (x.to(w) for x in chunks))
            fitted.append({name: value.cpu() for name, value in transform.state_dict().items()})
            assert where == CPU or device.operations["mm"] == (4 if pca else 0)
    for name, value in fitted[0].items():
        torch.testing.assert_close(fitted[1][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_the_transform_is_fitted_in_bounded_memory():
    frame = torch.randn(CELLS[0] * CELLS[1], 1024)
    with pretend() as device:
        transform, there = FeatureTransform((1024,), 8).to(CUDA), OnDevice(frame)
        device.measure()
        transform.fit(lambda: (there for _ in range(1)))
        # float64 values, their squares and a temporary one of half of the frame; the moments and their products
        assert device.peak < 3 * 8 * features.FIT_VALUES + 4 * 8 * 1024**2 < 450 * MB
    deviation = 1 / transform.scale.values
    torch.testing.assert_close(deviation, frame.std(0, correction=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("grid", "size"), [((3, 4), (24, 32)), ((5, 3), (7, 11)), ((8, 8), (3, 20)), ((1, 1), (4, 4))])
def test_products_of_weights_are_bilinear_up_sampling(grid, size):
    scores = torch.randn(2, grid[0] * grid[1], 6, dtype=torch.float64, requires_grad=True)
    expected, found = up_sampled_scores(scores, grid, size), products_of_weights(scores, grid, size)
    assert found.is_contiguous() and found.shape == (2, *size, 6)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # weights are float32
    upstream = torch.randn_like(found)
    grads = [torch.autograd.grad(x, scores, upstream)[0] for x in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-5)


def test_the_linear_probe_on_a_device_has_the_same_loss_and_gradient():
    probe, codes = LinearProbe(5, 4), torch.randn(2, 12, 5)
    label = torch.randint(-1, 4, (2, 24, 32), dtype=torch.int16)
    found = []
    for where in (CPU, CUDA):
        with pretend() as device:
            there = LinearProbe(5, 4)
            there.load_state_dict(probe.state_dict())
            there.to(where)
            loss = linear_probe_loss(there, codes.to(where), label, (3, 4))
            loss.backward()
            found.append([x.detach().cpu() for x in (loss, there.weight.grad, there.bias.grad)])
            assert not ATOMIC & set(device.operations)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "overrides", [("probe.cells=0",), ("sampling=random", "sampling.read=bilinear"), ("mode=released",)]
)
def test_no_gradient_of_a_step_is_added_up_by_atomics(tmp_path, overrides):
    root = write_camvid(tmp_path / "camvid")
    small = ("sampling.points=2", "sampling.schedule=[]", "loss.negative.draws=2", "loss.shifts=fixed")
    config = settings(root, *small, *overrides)
    data = Preparation(config, CPU).run()
    with pretend() as device:
        step = Step(config, data, Model(data.transform.channels, config.head.dim, 0.1, 11, 11).to(CUDA), CUDA)
        sum(step.losses(0)[0].values()).backward()
        assert device.operations["mm"] and not ATOMIC & set(device.operations)
