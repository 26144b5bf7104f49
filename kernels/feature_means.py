"""Means of F that spatial centring adds, from mean vectors: mean_npq f_np . g_nq = mean_n fbar_n . gbar_n.

Processes that share a batch average theirs and hand them to ``depthg_loss(..., feature_means=)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from depthg.kernels import checks
from depthg.kernels.code_gradient import inverse_length
from depthg.kernels.terms_cpu import mean_product, working_dtype


def mean_vectors(x: Tensor) -> Tensor:  # [N, P, C] -> [N, C]
    """Mean of the unit vectors of every image, without a normalised copy."""
    x = x.to(working_dtype(x))
    return torch.bmm(inverse_length(x)[:, None], x)[:, 0] / x.shape[1]


@checks.without_autocast
def feature_means(
    feats: Tensor,  # [N, P, C] anchors
    feats_neighbour: Tensor,  # [N, Q, C]
    negatives: Tensor,  # [R, N] int64, rows of the negative bank
    feats_negative: Tensor | None = None,  # [M, Q', C], default the anchors
) -> Tensor:  # [2 + R] float64
    """Means of F over images and both axes: self, neighbour, and every draw of negatives.

    Args:
        feats: features of the anchors ``[N, P, C]``, any length, float.
        feats_neighbour: features of each anchor's neighbour image ``[N, Q, C]``.
        negatives: ``[R, N]`` int64: draw r pairs anchor n with image ``negatives[r, n]`` of the negative bank.
        feats_negative: the negative bank ``[M, Q', C]``; default the anchors.

    Returns:
        ``[2 + R]`` float64 on the device of the features, what ``depthg_loss`` computes when it is not given any.

    Raises:
        TypeError, ValueError: as ``depthg_loss``.
    """
    bank = feats if feats_negative is None else feats_negative
    checks.check_floats(feats=feats, feats_neighbour=feats_neighbour, feats_negative=feats_negative)
    checks.check_codes("feats", feats, "feats_neighbour", feats_neighbour)
    checks.check_channels("feats", feats, "the negative bank", bank)
    checks.check_pairing("feats", feats, "the negative bank", bank, negatives, "negatives")
    own, near = mean_vectors(feats), mean_vectors(feats_neighbour)
    far = own if feats_negative is None else mean_vectors(feats_negative)
    pairs = (own, None), (near, None), (far, negatives)
    return torch.cat([mean_product(own, other, index) for other, index in pairs])
