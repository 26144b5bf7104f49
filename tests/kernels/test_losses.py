"""The modules do what the functions do."""

import pytest
import torch
from loss_cases import vectors

from depthg import kernels, losses
from depthg.kernels import LossSettings


def test_feature_correlation():
    data, index = [vectors(3, 5, c) for c in (4, 4, 3, 3)], torch.tensor([[1, 2, 0]])
    module = losses.FeatureCorrelation(0.2, center=False, clamp=False, max_similarity=0.5)
    wanted = kernels.correlation_loss(*data, 0.2, index_b=index, center=False, clamp=False, max_similarity=0.5)
    assert torch.equal(module(*data, index).loss, wanted.loss)
    assert "shift=0.2" in repr(module) and "center=False" in repr(module)


def test_depth_correlation():
    data = [vectors(3, 5, 3), vectors(3, 5, 3), torch.rand(3, 5), torch.rand(3, 5)]
    module = losses.DepthCorrelation(0.2, relation="gaussian", bandwidth=0.3)
    wanted = kernels.depth_correlation_loss(*data, 0.2, relation="gaussian", bandwidth=0.3)
    assert torch.equal(module(*data).loss, wanted.loss)
    assert "gaussian" in repr(module)


def test_depth_guided_loss_and_new_settings():
    data, index, depth = [vectors(3, 5, c) for c in (4, 3, 4, 3)], torch.tensor([[1, 2, 0]]), torch.rand(3, 5)
    module = losses.DepthGuidedLoss()
    assert module.settings == LossSettings()
    for module.settings in (LossSettings(), LossSettings(depth_weight=0.3, self_shift=0.4)):
        wanted = kernels.depthg_loss(*data, index, module.settings, depth=depth)
        assert torch.equal(module(*data, index, depth=depth).total, wanted.total)


def test_nt_xent():
    z_a, z_b = vectors(5, 3), vectors(5, 3)
    assert torch.equal(losses.NTXent(0.2)(z_a, z_b), kernels.nt_xent_loss(z_a, z_b, 0.2))
    with pytest.raises(ValueError, match="temperature"):
        losses.NTXent(0.0)
