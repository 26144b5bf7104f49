"""The eager definitions against hand-made numbers, written-out loops and gradcheck."""

import itertools
import math

import pytest
import torch

from depthg.kernels import LossSettings, reference


def cosine(x, y):
    length = math.sqrt(sum(v * v for v in x)) * math.sqrt(sum(v * v for v in y))
    return sum(v * w for v, w in zip(x, y, strict=True)) / length if length else 0.0


def loop_loss(feats_a, feats_b, codes_a, codes_b, shift, index_b, center, clamp, limit):
    """Eq. 2 with the centring of the paper, one number at a time."""
    draws, (n, p), q = len(index_b), (len(feats_a), len(feats_a[0])), len(feats_b[0])
    total, similarity = 0.0, 0.0
    for index in index_b:
        f = [[[cosine(feats_a[i][k], feats_b[index[i]][m]) for m in range(q)] for k in range(p)] for i in range(n)]
        mean = sum(v for image in f for row in image for v in row) / (n * p * q)
        for i, k, m in itertools.product(range(n), range(p), range(q)):
            target = f[i][k][m] - sum(f[i][k]) / q + mean if center else f[i][k][m]
            s = cosine(codes_a[i][k], codes_b[index[i]][m])
            similarity += s
            s = max(s, 0.0) if clamp else s
            s = s if limit is None else min(s, limit)
            total -= (target - shift) * s
    return total / (draws * n * p * q), similarity / (draws * n * p * q)


@pytest.mark.parametrize("center, clamp, limit", list(itertools.product([True, False], [True, False], [None, 0.3])))
def test_correlation_loss_is_the_written_out_loop(center, clamp, limit):
    shapes = [(3, 4, 5), (4, 2, 5), (3, 4, 3), (4, 2, 3)]
    data = [torch.randn(*shape, dtype=torch.float64) for shape in shapes]
    index_b = torch.tensor([[1, 3, 0], [2, 2, 1]])
    term = reference.correlation_loss(*data, 0.1, index_b=index_b, center=center, clamp=clamp, max_similarity=limit)
    loss, similarity = loop_loss(*(x.tolist() for x in data), 0.1, index_b.tolist(), center, clamp, limit)
    assert term.loss.item() == pytest.approx(loss, abs=1e-12)
    assert term.similarity.item() == pytest.approx(similarity, abs=1e-12)


def test_correlation_of_hand_made_vectors():
    a, b = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]), torch.tensor([[[3.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    expected = torch.tensor([[[[1.0, 0.0, math.sqrt(0.5)], [0.0, 0.0, 0.0]]]])
    torch.testing.assert_close(reference.correlation(a, b), expected)
    torch.testing.assert_close(reference.correlation(a, b, cosine=False)[0, 0, 0], torch.tensor([6.0, 0.0, 2.0]))


def test_centering_removes_row_means_and_keeps_the_mean_of_the_draw():
    a, b, index = torch.randn(3, 4, 5), torch.randn(4, 6, 5), torch.tensor([[1, 3, 0], [2, 2, 1]])
    plain, centered = (reference.correlation(a, b, index_b=index, center=c) for c in (False, True))
    torch.testing.assert_close(centered.mean((1, 2, 3)), plain.mean((1, 2, 3)))
    rows = centered.mean(3)
    torch.testing.assert_close(rows, centered.mean((1, 2, 3))[:, None, None].expand_as(rows))


@pytest.mark.parametrize(
    "relation, expected",
    [
        ("product", [[0.25 * 0.5, 0.0], [1.0 * 0.5, 0.0]]),
        ("unit", [[1.0, 0.0], [1.0, 0.0]]),
        ("centered", [[-1.0, 1.0], [1.0, -1.0]]),
        ("gaussian", [[math.exp(-0.25), math.exp(-0.25)], [math.exp(-1.0), math.exp(-4.0)]]),
    ],
)
def test_depth_relations_of_hand_made_depth(relation, expected):
    u, v = torch.tensor([[0.25, 1.0]]), torch.tensor([[0.5, 0.0]])
    torch.testing.assert_close(reference.depth_relation(u, v, relation, 0.5)[0], torch.tensor(expected))


def test_relations_of_points_and_normals():
    p, q = torch.tensor([[[0.0, 0.0, 1.0]]]), torch.tensor([[[0.0, 3.0, 1.0], [0.0, 0.0, 2.0]]])
    near = reference.depth_relation(p, q, "euclidean", 3.0)[0, 0]
    torch.testing.assert_close(near, torch.tensor([math.exp(-1.0), math.exp(-1 / 9)]))
    angle = reference.depth_relation(p, q, "normals")[0, 0]
    torch.testing.assert_close(angle, torch.tensor([math.sqrt(0.1), 1.0]))
    with pytest.raises(ValueError, match="product"):
        reference.depth_relation(p, q, "inverse")


def test_depthg_loss_is_the_weighted_sum_of_its_terms():
    feats, codes, near_feats, near_codes = (torch.randn(3, 4, c, dtype=torch.float64) for c in (5, 3, 5, 3))
    depth = torch.rand(3, 4, dtype=torch.float64)
    s = LossSettings(depth_weight=0.2, depth_shift=0.05)
    result = reference.depthg_loss(feats, codes, near_feats, near_codes, torch.tensor([[1, 2, 0]]), s, depth=depth)
    own = reference.correlation_loss(feats, feats, codes, codes, s.self_shift)
    near = reference.correlation_loss(feats, near_feats, codes, near_codes, s.neighbour_shift)
    rolled = [x.roll(-1, 0) for x in (feats, codes)]
    far = reference.correlation_loss(feats, rolled[0], codes, rolled[1], s.negative_shift)
    guide = reference.depth_correlation_loss(codes, codes, depth, depth, s.depth_shift)
    expected = 0.67 * own.loss + 0.25 * near.loss + 0.63 * far.loss + 0.2 * guide.loss
    torch.testing.assert_close(result.total, expected)
    for ours, alone in zip(result[1:], (own, near, far, guide), strict=True):
        torch.testing.assert_close(tuple(ours), tuple(alone))
    assert reference.depthg_loss(feats, codes, near_feats, near_codes, torch.tensor([[1, 2, 0]]), s).depth is None


def test_gradcheck():
    feats = [torch.randn(2, 3, 4, dtype=torch.float64) for _ in range(2)]
    codes = [torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    depth = [torch.rand(2, 3, dtype=torch.float64) for _ in range(2)]
    index = torch.tensor([[1, 0], [1, 1]])
    assert torch.autograd.gradcheck(
        lambda a, b: reference.correlation_loss(*feats, a, b, 0.1, index_b=index).loss, codes
    )
    assert torch.autograd.gradcheck(lambda a, b: reference.depth_correlation_loss(a, b, *depth, 0.1).loss, codes)
    views = [x.detach()[:, 0].requires_grad_() for x in codes]
    assert torch.autograd.gradcheck(lambda a, b: reference.nt_xent_loss(a, b, 0.5), views)
    maps = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    points = torch.rand(2, 4, 2, dtype=torch.float64) * 2 - 1
    assert torch.autograd.gradcheck(lambda m: reference.sample_points(m, points), [maps])


def test_zero_vectors_have_similarity_and_gradient_zero():
    codes = torch.randn(2, 3, 4, dtype=torch.float64)
    codes[0, 1] = 0
    codes.requires_grad_()
    feats = torch.randn(2, 3, 5, dtype=torch.float64)
    reference.correlation_loss(feats, feats, codes, codes, 0.1).loss.backward()
    assert torch.isfinite(codes.grad).all()
    assert (codes.grad[0, 1] == 0).all() and codes.grad[0, 0].norm() > 0


def test_nt_xent_is_the_written_out_loop():
    z_a, z_b = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    z = [*z_a.tolist(), *z_b.tolist()]
    total = 0.0
    for i in range(6):
        logits = {j: cosine(z[i], z[j]) / 0.3 for j in range(6) if j != i}
        total += math.log(sum(map(math.exp, logits.values()))) - logits[(i + 3) % 6]
    assert reference.nt_xent_loss(z_a, z_b, 0.3).item() == pytest.approx(total / 6, abs=1e-12)


def test_histogram_counts_hand_made_values():
    a = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert reference.correlation_histogram(a, a, 4).tolist() == [0, 0, 2, 2]  # two 0, and two 1 in the outermost bin
    assert reference.correlation_histogram(a, a, 2, range=(0.5, 1.5)).tolist() == [2, 2]
