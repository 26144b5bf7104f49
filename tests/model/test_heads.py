"""Head and probes: the head against STEGO's 1 x 1 convolutions, dropout masks, probe losses against loops."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from depthg.features.transform import channel_dropout
from depthg.model.heads import (
    CACHED_VECTORS,
    ClusterProbe,
    LinearProbe,
    SegmentationHead,
    codes_without_grad,
    linear_probe_loss,
)


def test_head_equals_one_by_one_convolutions():
    head = SegmentationHead(12, 5).eval()
    linear, first, last = nn.Conv2d(12, 5, 1), nn.Conv2d(12, 12, 1), nn.Conv2d(12, 5, 1)
    pairs = ((linear, head.linear), (first, head.nonlinear[0]), (last, head.nonlinear[2]))
    for convolution, layer in pairs:
        convolution.weight.data = layer.weight.data[..., None, None].clone()
        convolution.bias.data = layer.bias.data.clone()
    maps = torch.randn(3, 12, 4, 6)
    expected = linear(maps) + last(F.relu(first(maps)))
    torch.testing.assert_close(head(maps.flatten(2).transpose(1, 2)), expected.flatten(2).transpose(1, 2))


def test_head_on_points_equals_head_on_maps_at_those_points():
    head, feats, points = SegmentationHead(12, 5).eval(), torch.randn(3, 24, 12), torch.randint(24, (3, 7))
    index = points[..., None]
    at_points = head(feats.gather(1, index.expand(-1, -1, 12)))
    torch.testing.assert_close(at_points, head(feats).gather(1, index.expand(-1, -1, 5)))


def test_dropout_takes_whole_channels_and_keeps_the_mean():
    x = torch.ones(2000, 3, 8)
    dropped = channel_dropout(x, 0.25)
    assert ((dropped == 0) | (dropped == 1 / 0.75)).all()
    assert (dropped[:, :1] == dropped).all(), "a channel is dropped at every point of an image or at none"
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert channel_dropout(x, 0.0) is x


def test_head_drops_only_in_training_and_each_branch_by_itself():
    head = SegmentationHead(6, 4, dropout=0.5)
    x = torch.randn(64, 2, 6)
    assert torch.equal(head.eval()(x), head(x))
    head.train()
    assert not torch.equal(head(x), head(x))
    masks = []
    for layer in (head.linear, head.nonlinear[0]):
        layer.register_forward_pre_hook(lambda _, inputs: masks.append(inputs[0] == 0))
    head(x)
    assert not torch.equal(*masks)


def test_cluster_loss_against_a_loop_and_arg_max_is_that_of_the_cosine():
    probe, codes = ClusterProbe(5, 3), torch.randn(2, 4, 5)
    best = [max(F.cosine_similarity(c, k, dim=0) for k in probe.centroids) for c in codes.reshape(-1, 5)]
    torch.testing.assert_close(probe.loss(codes), -torch.stack(best).mean())
    cosine = F.normalize(codes, dim=-1) @ F.normalize(probe.centroids, dim=-1).T
    assert torch.equal(probe(codes).argmax(-1), cosine.argmax(-1))


@pytest.mark.parametrize("points", [CACHED_VECTORS // 2 - 1, 2 * CACHED_VECTORS])
def test_codes_for_the_probes_are_those_of_the_head(points):
    head, feats = SegmentationHead(3, 2).eval(), torch.randn(5, points, 3)
    codes = codes_without_grad(head, feats)
    torch.testing.assert_close(codes, head(feats))
    assert not codes.requires_grad


def test_linear_loss_over_all_pixels_equals_the_loss_on_up_sampled_codes():
    probe, codes = LinearProbe(5, 3), torch.randn(2, 12, 5)
    label = torch.randint(-1, 3, (2, 13, 17))
    maps = codes.transpose(1, 2).unflatten(2, (3, 4))
    up = F.interpolate(maps, (13, 17), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    known = label >= 0
    expected = F.cross_entropy(probe(up[known]), label[known])
    torch.testing.assert_close(linear_probe_loss(probe, codes, label, (3, 4)), expected)


@pytest.mark.parametrize("size", [(12, 16), (15, 20), (3, 4)])
def test_linear_loss_at_cells_is_that_of_the_pixels_in_their_middle(size):
    probe, codes, cells = LinearProbe(5, 3), torch.randn(2, 12, 5), torch.tensor([[0, 5, 11], [7, 7, 2]])
    label = torch.randint(-1, 3, (2, *size))
    label[:, size[0] // 6, size[1] // 8] = 1  # the middle of cell 0 is labelled
    at_cells = codes.gather(1, cells[..., None].expand(-1, -1, 5))
    step = size[0] // 3
    target = label[:, step // 2 :: step, step // 2 :: step].flatten(1).gather(1, cells)
    expected = F.cross_entropy(probe(at_cells).flatten(0, 1), target.flatten(), ignore_index=-1)
    torch.testing.assert_close(linear_probe_loss(probe, at_cells, label, (3, 4), cells), expected)


def test_linear_loss_without_labels_is_none_and_not_nan():
    probe, codes, void = LinearProbe(5, 3), torch.randn(2, 12, 5), torch.full((2, 12, 16), -1)
    assert linear_probe_loss(probe, codes, void, (3, 4)) is None
    assert linear_probe_loss(probe, codes[:, :2], void, (3, 4), torch.tensor([[0, 3], [1, 2]])) is None
