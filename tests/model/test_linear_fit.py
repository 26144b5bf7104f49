"""Logistic regression on codes: the minimum is scikit-learn's objective's, and the same every time."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from depthg.features.reading import Features
from depthg.model.codes import labelled_codes
from depthg.model.heads import label_at
from depthg.model.linear_fit import GRADIENT, ROWS, fit_linear, whitening


def clouds(n=400, dim=6, n_classes=3, seed=0):
    """Overlapping clouds of codes whose channels have unlike means and deviations."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(n_classes, (n,), generator=generator)
    centres = torch.randn(n_classes, dim, generator=generator)
    codes = centres[classes] + torch.randn(n, dim, generator=generator)
    return codes * torch.logspace(-2, 2, dim) + torch.arange(dim), classes


def objective(codes, classes, weight, bias):
    """What is minimised, in the terms of its docstring: the weights that act on whitened codes are penalised."""
    mean, axes = whitening(codes.double())
    own, own_bias = weight @ torch.linalg.inv(axes).T, bias + weight @ mean
    penalty = (own.square().sum() + own_bias.square().sum()) / (2 * len(codes))
    return F.cross_entropy(((codes.double() - mean) @ axes) @ own.T + own_bias, classes) + penalty


def test_the_fit_is_the_minimum_of_the_objective():
    codes, classes = clouds()
    fit = fit_linear(codes, classes, 3)
    weight, bias = fit.weight.double().requires_grad_(), fit.bias.double().requires_grad_()
    lowest = objective(codes, classes, weight, bias)
    mean, axes = whitening(codes.double())
    d_weight, d_bias = torch.autograd.grad(lowest, (weight, bias))
    slope = (d_weight - d_bias[:, None] * mean) @ axes
    assert slope.abs().max() < 2 * GRADIENT, "of the weights on whitened codes"
    assert fit.gradient <= GRADIENT and 3 < fit.iterations < 100
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        step = 1e-2 * torch.randn(weight.shape, generator=generator).double() @ axes.T
        assert objective(codes, classes, weight + step, bias) > lowest


def test_whitened_codes_have_variance_one_and_no_correlation():
    codes = clouds(n=1000)[0].double()
    codes = torch.cat([codes, codes[:, :1] + 1e-5 * codes[:, 1:2], torch.full((1000, 1), 7.0)], 1)
    mean, axes = whitening(codes)
    white = (codes - mean) @ axes
    variance = torch.linalg.eigvalsh(white.T @ white / 1000)
    torch.testing.assert_close(variance[2:], torch.ones(6, dtype=torch.float64))
    assert variance[:2].abs().max() < 1e-2, "a copy of a channel, and a constant one, are not blown up"


def test_one_class_against_another_by_newton():
    """Two classes and one channel against Newton's method on the same objective, written out."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(200) % 2
    codes = (torch.randn(200, 1, generator=generator) + classes[:, None]).double()
    x = torch.cat([(codes - codes.mean()) / codes.std(correction=0), torch.ones(200, 1)], 1)
    found = torch.zeros(2, dtype=torch.float64)  # of the second class; the first has the opposite sign
    for _ in range(20):
        chance = torch.sigmoid(2 * x @ found)
        slope = 2 * x.T @ (chance - classes) + 2 * found
        curve = 4 * (x.T * (chance * (1 - chance))) @ x + 2 * torch.eye(2)
        found = found - torch.linalg.solve(curve, slope)
    fit = fit_linear(codes, classes, 2)
    torch.testing.assert_close(fit.weight[1].double() * codes.std(correction=0), found[:1], atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(fit.weight[0], -fit.weight[1])


def test_blocks_repeats_and_precision_change_nothing():
    codes, classes = clouds(n=2 * ROWS + 5)
    one, again = (fit_linear(codes, classes, 4) for _ in range(2))
    assert torch.equal(one.weight, again.weight) and torch.equal(one.bias, again.bias)
    torch.testing.assert_close(fit_linear(codes.double(), classes, 4).weight, one.weight)
    assert one.weight.dtype == torch.float32 and one.weight.shape == (4, 6) and one.bias.shape == (4,)
    predicted = (codes @ one.weight.T + one.bias).argmax(1)
    assert (predicted != 3).all(), "a class without a row is predicted nowhere"


def test_constant_channels_and_a_single_class():
    codes, classes = clouds()
    constant = torch.cat([codes, torch.full((len(codes), 1), 7.0)], 1)
    fit = fit_linear(constant, classes, 3)
    assert torch.isfinite(fit.weight).all() and fit.weight[:, -1].abs().max() < 1e-6
    only = fit_linear(codes, torch.ones_like(classes), 3)
    assert ((codes @ only.weight.T + only.bias).argmax(1) == 1).all()


def test_fewer_iterations_stop_early():
    codes, classes = clouds()
    fit = fit_linear(codes, classes, 3, iterations=2)
    assert fit.iterations == 2 and fit.gradient > GRADIENT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda codes, classes: (codes[:0], classes[:0]), "at least one row, got"),
        (lambda codes, classes: (codes[None], classes), r"got \[1, 400, 6\]"),
        (lambda codes, classes: (codes, classes[1:]), r"and\s+\[399\]"),
        (lambda codes, classes: (codes, classes + 1), r"in \[0, 3\), got 3"),
        (lambda codes, classes: (codes, classes - 1), "got -1; leave out void"),
        (lambda codes, classes: (codes / 0, classes), "NaN or infinity"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        fit_linear(*change(*clouds()), 3)


class Rows(Features):
    """Features whose vectors say which view and cell they are of, and that record the views read."""

    def __init__(self, views, cells):
        super().__init__((views, cells, 2), torch.float32)
        self.seen = []

    def read(self, views):
        self.seen += np.asarray(views).tolist()
        view, cell = torch.meshgrid(torch.as_tensor(views), torch.arange(self.shape[1]), indexing="ij")
        return torch.stack([view, cell], -1).float()


@pytest.mark.parametrize("count", [12, 10_000])
def test_cells_are_labelled_spread_and_bounded(count):
    labels = np.random.default_rng(0).integers(-1, 3, (6, 12, 8)).astype(np.int16)
    labels[2] = -1
    features = Rows(6, 24)
    codes, classes = labelled_codes(torch.nn.Identity(), features, labels, (6, 4), 0, torch.device("cpu"), count)
    every = label_at(torch.from_numpy(labels), torch.arange(24).expand(6, -1), (6, 4))
    view, cell = codes.long().T
    assert classes.tolist() == every[view, cell].tolist() and (classes >= 0).all()
    assert len(set(zip(view.tolist(), cell.tolist(), strict=True))) == len(view), "no cell twice"
    if count == 12:
        assert torch.bincount(view, minlength=6).tolist() == [2, 2, 0, 2, 2, 2]
    else:
        assert len(classes) == int((every >= 0).sum())
    assert 2 not in features.seen, "views without a label are not read"


def test_cells_depend_on_the_seed_and_many_views_are_thinned(monkeypatch):
    labels = np.zeros((30, 6, 6), np.int16)
    read = [labelled_codes(torch.nn.Identity(), Rows(30, 9), labels, (3, 3), seed, "cpu", 60)[0] for seed in (0, 0, 1)]
    assert torch.equal(read[0], read[1]) and not torch.equal(read[0], read[2])
    monkeypatch.setattr("depthg.model.codes.FIT_VIEWS", 10)
    codes = labelled_codes(torch.nn.Identity(), Rows(30, 9), labels, (3, 3), 0, "cpu", 60)[0]
    assert codes[:, 0].unique().tolist() == list(range(0, 30, 3)) and len(codes) == 60
    assert labelled_codes(torch.nn.Identity(), Rows(30, 9), labels - 1, (3, 3), 0, "cpu")[1].numel() == 0
