"""The drop-in against STEGO's formulas written out in five dimensions, with equal random draws."""

from types import SimpleNamespace

import pytest
import torch
from loss_cases import DEVICE, vectors
from torch.nn import functional

from depthg.compat import ATTRIBUTES, ContrastiveCorrelationLoss


def config(**changes):
    return SimpleNamespace(
        **{
            "pointwise": True, "zero_clamp": True, "stabalize": False, "feature_samples": 5, "neg_samples": 3,
            "use_salience": False, "pos_intra_shift": 0.18, "pos_inter_shift": 0.12, "neg_inter_shift": 0.46,
        }
        | changes
    )  # fmt: skip


def correlate(a, b):  # [N, C, S, S] each -> [N, S, S, S, S]
    return torch.einsum("nchw,ncij->nhwij", functional.normalize(a, dim=1), functional.normalize(b, dim=1))


def term(cfg, feats_a, feats_b, codes_a, codes_b, shift):
    with torch.no_grad():
        target = correlate(feats_a, feats_b)
        if cfg.pointwise:
            mean = target.mean()
            target = target - target.mean([3, 4], keepdim=True)
            target = target - target.mean() + mean
    similarity = correlate(codes_a, codes_b)
    weight = similarity.clamp(0.0 if cfg.zero_clamp else -9999.0, 0.8 if cfg.stabalize else None)
    return -weight * (target - shift), similarity


def original(cfg, feats, feats_pos, codes, codes_pos):
    """The loss as published, on five-dimensional tensors; the means that the caller would take are taken here."""
    n, side = feats.shape[0], cfg.feature_samples
    coords = [torch.rand([n, side, side, 2], device=feats.device) * 2 - 1 for _ in range(2)]

    def read(maps, at):
        return functional.grid_sample(maps, at.permute(0, 2, 1, 3), padding_mode="border", align_corners=True)

    a, b = read(feats, coords[0]), read(feats_pos, coords[1])
    code_a, code_b = read(codes, coords[0]), read(codes_pos, coords[1])
    own = term(cfg, a, a, code_a, code_a, cfg.pos_intra_shift)
    near = term(cfg, a, b, code_a, code_b, cfg.pos_inter_shift)
    far = []
    for _ in range(cfg.neg_samples):
        index = torch.randperm(n, device=feats.device)
        index[index == torch.arange(n, device=feats.device)] += 1
        index = index % n
        far.append(
            term(cfg, a, read(feats[index], coords[1]), code_a, read(codes[index], coords[1]), cfg.neg_inter_shift)
        )
    far = [torch.cat(x) for x in zip(*far, strict=True)]
    return [x.mean() for pair in (own, near, far) for x in pair]


@pytest.mark.parametrize(
    "changes",
    [{}, {"pointwise": False}, {"zero_clamp": False}, {"stabalize": True}, {"zero_clamp": False, "stabalize": True}],
)
def test_equal_seeds_give_equal_losses_and_gradients(changes):
    cfg = config(**changes)
    feats, feats_pos = vectors(6, 8, 7, 9), vectors(6, 8, 7, 9)
    codes, codes_pos = vectors(6, 4, 14, 18, grad=True), vectors(6, 4, 14, 18, grad=True)
    results = []
    for function in (
        lambda: original(cfg, feats, feats_pos, codes, codes_pos),
        lambda: ContrastiveCorrelationLoss(cfg)(feats, feats_pos, None, None, codes, codes_pos),
    ):
        torch.manual_seed(3)
        values = function()
        total = 0.67 * values[0] + 0.25 * values[2] + 0.63 * values[4]
        results.append((values, torch.autograd.grad(total, [codes, codes_pos]), torch.rand(1).item()))
    (wanted, d_wanted, after), (ours, d_ours, after_ours) = results
    assert after == after_ours  # the generators stand at the same place
    for x, y in zip(ours, wanted, strict=True):
        assert x.shape == ()
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    for x, y in zip(d_ours, d_wanted, strict=True):
        assert (x - y).norm() <= 1e-5 * y.norm()


def test_similarities_are_detached_and_features_get_no_gradient():
    feats, codes = vectors(3, 4, 5, 5, grad=True), vectors(3, 4, 5, 5, grad=True)
    values = ContrastiveCorrelationLoss(config())(feats, feats, None, None, codes, codes)
    assert [x.requires_grad for x in values] == [True, False] * 3
    sum(values).backward()
    assert feats.grad is None and codes.grad.norm() > 0


def test_changes_of_the_config_take_effect():
    cfg = config()
    module, feats, codes = ContrastiveCorrelationLoss(cfg), vectors(3, 4, 5, 5), vectors(3, 4, 5, 5)
    losses = []
    for cfg.neg_inter_shift in (0.1, 0.9):
        torch.manual_seed(0)
        losses.append(module(feats, feats, None, None, codes, codes))
    assert losses[0][0] == losses[1][0] and losses[0][4] != losses[1][4]


def test_wrong_configs():
    for name in ATTRIBUTES:
        cfg = config()
        delattr(cfg, name)
        with pytest.raises(ValueError, match=f"cfg lacks {name}"):
            ContrastiveCorrelationLoss(cfg)
    with pytest.raises(NotImplementedError, match="salience sampling is not supported"):
        ContrastiveCorrelationLoss(config(use_salience=True))


def test_no_negatives():
    feats, codes = vectors(3, 4, 5, 5), vectors(3, 4, 5, 5)
    values = ContrastiveCorrelationLoss(config(neg_samples=0))(feats, feats, None, None, codes, codes)
    assert values[4].item() == 0 and values[0].device.type == DEVICE
