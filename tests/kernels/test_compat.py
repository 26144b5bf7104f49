"""The drop-in against STEGO's and DepthG's formulas written out in five dimensions, with equal random draws.

And against the values of DepthG's class in ``tests/oracle/released.npz``.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loss_cases import DEVICE, HALVES, IMPLS, LONG, vectors
from torch.nn import functional

from depthg import compat
from depthg.compat import ATTRIBUTES, DEPTH_ATTRIBUTES, ContrastiveCorrelationLoss

ORACLE = Path(__file__).parents[1] / "oracle" / "released.npz"
DEPTHG = {"depth_sampling": "fps", "depth_feat_correlation_loss": True, "depth_feat_shift": 0.03}


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


def salient(cfg, maps):
    """Cells that are not 0, image by image, and everywhere instead at a tenth of the points; (x, y) in [-1, 1]."""
    side, found = cfg.feature_samples, []
    for x in maps:
        coords = []
        for image in x:
            rows, columns = torch.where(image != 0)
            if len(rows) > 0:
                drawn = torch.randint(len(rows), (side**2,))
                rows, columns = rows[drawn], columns[drawn]
            else:
                rows, columns = torch.randint(x.shape[1], (side**2, 2), device=x.device).unbind(1)
            coords.append(torch.stack([columns, rows], 1).reshape(side, side, 2) / x.shape[1] * 2 - 1)
        found.append(torch.stack(coords))
    shape = (len(maps[0]), side, side)
    anywhere = [torch.rand([*shape, 2], device=x.device) * 2 - 1 for x in maps]
    replaced = torch.rand(shape, device=maps[0].device) <= 0.1
    for coords, other in zip(found, anywhere, strict=True):
        coords[replaced] = other[replaced]
    return found


def farthest(depth, height, width, side):
    """Points of the released code by a search over all distances, in raster order, with (row, column) as (x, y)."""
    depth = functional.adaptive_avg_pool2d(depth, (height, width)).cpu().numpy()
    factor, found = np.float32(3.2395503520965576), []
    row, column = np.indices((height, width)).astype(np.float32)
    for d in depth[:, 0]:
        x, y = factor * d * (column - width / 2) / width, factor * d * (row - height / 2) / height
        cloud = np.stack([x.ravel(), y.ravel(), -5 * d.ravel()], 1)
        picked = [0]
        while len(picked) < side**2:
            distance = np.min([((cloud - cloud[i]) ** 2).sum(1) for i in picked], 0)
            distance[picked] = -1
            picked.append(int(distance.argmax()))
        cells = np.array(sorted(picked))
        found.append(np.stack([cells // width / height, cells % width / width], 1).reshape(side, side, 2))
    return torch.from_numpy(np.stack(found) * 2 - 1).float().to(DEVICE)


def original(cfg, feats, feats_pos, codes, codes_pos, salience=None, depth=None, depth_pos=None):
    """The loss as published, on five-dimensional tensors; the means that the caller would take are taken here."""
    n, side = feats.shape[0], cfg.feature_samples
    if cfg.use_salience:
        coords = salient(cfg, salience)
    elif getattr(cfg, "depth_sampling", "none") == "fps":
        coords = [farthest(depth, *feats.shape[2:], side), farthest(depth_pos, *feats_pos.shape[2:], side)]
    else:
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
    pairs = [own, near, [torch.cat(x) for x in zip(*far, strict=True)]]
    if getattr(cfg, "depth_feat_correlation_loss", False):
        grid = functional.interpolate(depth, (side, side), mode="bilinear", align_corners=True)
        relation = torch.einsum("nchw,ncij->nhwij", (grid > 0).float(), (grid > 0).float())
        weight = correlate(code_a, code_a).clamp(0.0 if cfg.zero_clamp else -9999.0, 0.8 if cfg.stabalize else None)
        pairs.append((-weight * (relation - cfg.depth_feat_shift), relation))
    return [x.mean() for pair in pairs for x in pair]


def assert_equal_with_equal_seeds(cfg, salience=(None, None), depth=(), feats=(7, 9), squeeze=False):
    feats, feats_pos = vectors(6, 8, *feats), vectors(6, 8, *feats)
    codes, codes_pos = vectors(6, 4, 14, 18, grad=True), vectors(6, 4, 14, 18, grad=True)
    given = [x[:, 0] for x in depth] if squeeze else depth
    results = []
    for function in (
        lambda: original(cfg, feats, feats_pos, codes, codes_pos, salience, *depth),
        lambda: ContrastiveCorrelationLoss(cfg)(feats, feats_pos, *salience, codes, codes_pos, *given),
    ):
        torch.manual_seed(3)
        values = function()
        total = sum(w * x for w, x in zip((0.67, 0.25, 0.63, 0.19), values[::2], strict=False))
        results.append((values, torch.autograd.grad(total, [codes, codes_pos]), torch.rand(1).item()))
    (wanted, d_wanted, after), (ours, d_ours, after_ours) = results
    assert after == after_ours  # the generators stand at the same place
    for x, y in zip(ours, wanted, strict=True):
        assert x.shape == ()
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    for x, y in zip(d_ours, d_wanted, strict=True):
        assert (x - y).norm() <= 1e-5 * y.norm()
    return ours


@pytest.mark.parametrize(
    "changes",
    [{}, {"pointwise": False}, {"zero_clamp": False}, {"stabalize": True}, {"zero_clamp": False, "stabalize": True}],
)
def test_equal_seeds_give_equal_losses_and_gradients(changes):
    assert len(assert_equal_with_equal_seeds(config(**changes))) == 6


@pytest.mark.parametrize("step", ["step", "step_zero"])  # in the second half of the depth is 0
@pytest.mark.parametrize("impl", [*LONG, "eager"])
def test_values_of_the_released_class(monkeypatch, step, impl):
    with np.load(ORACLE) as values:
        given = {x: torch.from_numpy(values[x]).to(DEVICE) for x in values.files if x.startswith("step")}
    given = {name.removeprefix(f"{step}_"): x for name, x in given.items()}
    perms = iter(given["perms"])
    monkeypatch.setattr(compat, "_draw", lambda n, device: next(perms))
    shifts = {"pos_intra_shift": 0.07, "pos_inter_shift": 0.025, "neg_inter_shift": 0.76}
    codes = [given[x].requires_grad_() for x in ("code", "code_pos")]
    results = ContrastiveCorrelationLoss(config(neg_samples=5, **shifts, **DEPTHG), impl=impl)(
        given["feats"], given["feats_pos"], None, None, *codes, given["depth"], given["depth_pos"]
    )
    losses = torch.stack(results[::2])
    assert len(results) == 8 and (losses - given["losses"]).abs().max() <= 1e-6
    grads = torch.autograd.grad(losses @ losses.new_tensor([0.58, 0.36, 0.70, 0.19]), codes)
    for x, y in zip(grads, (given["grad_code"], given["grad_code_pos"]), strict=True):
        assert (x - y).norm() <= 1e-5 * y.norm()


def depths(*size):
    """Two batches of six depth maps, an eighth of each 0 in one piece."""
    maps = [torch.rand(6, 1, *size, device=DEVICE) for _ in range(2)]
    for x in maps:
        x[:, :, : size[0] // 4, : size[1] // 2] = 0
    return maps


@pytest.mark.parametrize("sampling", ["fps", "none"])
@pytest.mark.parametrize("term", [True, False])
def test_every_combination_of_depth_term_and_sampling(sampling, term):
    cfg = config(depth_sampling=sampling, depth_feat_correlation_loss=term, depth_feat_shift=0.3)
    ours = assert_equal_with_equal_seeds(cfg, depth=depths(7, 9))
    assert len(ours) == (8 if term else 6)
    if term:
        assert not ours[7].requires_grad and 0.1 < ours[7] < 0.99


@pytest.mark.parametrize("size", [(56, 72), (11, 5), (4, 4)])
@pytest.mark.parametrize("squeeze", [True, False])
def test_depth_of_another_size(size, squeeze):
    assert_equal_with_equal_seeds(config(stabalize=True, **DEPTHG), depth=depths(*size), squeeze=squeeze)


def test_all_depth_is_zero():
    ours = assert_equal_with_equal_seeds(config(**DEPTHG), depth=[torch.zeros(6, 1, 8, 8, device=DEVICE)] * 2)
    assert ours[7] == 0


def test_salience():
    maps = [(torch.rand(6, 10, 10, device=DEVICE) > 0.8).float() for _ in range(2)]
    maps[0][2] = 0  # there any cell is drawn
    assert len(assert_equal_with_equal_seeds(config(use_salience=True), salience=maps)) == 6
    cfg = config(use_salience=True, **DEPTHG)  # salience comes before farthest points
    assert len(assert_equal_with_equal_seeds(cfg, salience=maps, depth=depths(7, 9))) == 8


def test_most_points_are_salient():
    salience = torch.zeros(4, 8, 8, device=DEVICE)
    salience[:, 2, 5] = 1
    cfg = config(use_salience=True, feature_samples=20)
    points, _ = ContrastiveCorrelationLoss(cfg)._points(vectors(4, 1, 8, 8), None, (salience, salience), None, None)
    there = (points == torch.tensor([0.25, -0.5], device=DEVICE)).all(-1)  # x of column 5, y of row 2
    assert 0.85 < there.float().mean() < 0.95


@pytest.mark.parametrize("dtype", HALVES)
def test_half_maps_are_read_at_float32_coordinates(dtype):
    x = torch.arange(28.0).expand(1, 1, 28, 28).to(DEVICE, dtype)  # exact: the value of a cell is its column
    coords = torch.rand(1, 500, 2, device=DEVICE) * 2 - 1
    module, wanted = ContrastiveCorrelationLoss(config()), (coords[..., :1].double() + 1) / 2 * 27
    for ours in (module._read(x, coords), module._negatives(x, coords, torch.zeros((1, 1), dtype=int, device=DEVICE))):
        assert ours.dtype == dtype
        assert ((ours.double() - wanted).abs() <= torch.finfo(dtype).eps / 2 * wanted + 1e-5).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_half_maps_give_the_losses_of_float32(dtype):
    feats, codes, depth = vectors(6, 16, 14, 14).to(dtype), vectors(6, 8, 14, 14).to(dtype), depths(14, 14)
    cfg, results = config(zero_clamp=False, **DEPTHG), []  # with the clamp a similarity near 0 may change its slope
    for kind in (dtype, torch.float32):
        torch.manual_seed(0)
        leaf, module = codes.to(kind).requires_grad_(), ContrastiveCorrelationLoss(cfg)
        values = module(feats.to(kind), feats.flip(0).to(kind), None, None, leaf, leaf.flip(0), *depth)
        total = 2**12 * sum(values[::2])  # scaled, since small gradients vanish in float16
        results.append((torch.stack(values[::2]), *torch.autograd.grad(total, leaf)))
    (values, d_codes), (wanted, d_wanted) = results
    assert d_codes.dtype == dtype and (values - wanted).abs().max() <= torch.finfo(dtype).eps / 20
    assert (d_codes.float() - d_wanted).norm() <= torch.finfo(dtype).eps * d_wanted.norm()


@pytest.mark.skipif("cpp" not in IMPLS, reason="needs compiled CPU code")
@pytest.mark.parametrize("dtype", [*HALVES, torch.float64])
def test_cpp_reads_float32_alone(dtype):
    feats, codes = vectors(3, 4, 5, 5, dtype=dtype), vectors(3, 4, 5, 5, dtype=dtype)
    with pytest.raises(ValueError, match=r"impl='cpp' has no b?float\d\d; use impl='auto' or 'eager'"):
        ContrastiveCorrelationLoss(config(), impl="cpp")(feats, feats, None, None, codes, codes)


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


def call(cfg, salience=(None, None), depth=(), n=3):
    feats, codes = vectors(n, 4, 5, 5), vectors(n, 4, 5, 5)
    return ContrastiveCorrelationLoss(cfg)(feats, feats, *salience, codes, codes, *depth)


def test_wrong_depth_configs():
    depth = [torch.rand(3, 1, 5, 5, device=DEVICE)] * 2
    with pytest.raises(ValueError, match="cfg lacks depth_sampling, depth_feat_correlation_loss, depth_feat_shift; a"):
        call(config(), depth=depth)
    for name in DEPTH_ATTRIBUTES:
        cfg = config(**DEPTHG)
        delattr(cfg, name)
        with pytest.raises(ValueError, match=f"cfg lacks {name}; a call with depth maps needs depth_sampling,"):
            call(cfg, depth=depth)
    for name in ("simple", "FPS"):
        with pytest.raises(ValueError, match=f"depth_sampling='{name}' is not supported; use 'fps', or 'none'"):
            call(config(**DEPTHG | {"depth_sampling": name}), depth=depth)
    with pytest.raises(ValueError, match="feature_samples=6 asks for 36 points of a map of 5 x 5 cells; lower it"):
        call(config(feature_samples=6, **DEPTHG), depth=depth)


def test_missing_depth_maps():
    depth = torch.rand(3, 1, 5, 5, device=DEVICE)
    with pytest.raises(ValueError, match="depth_sampling='fps' needs depth maps, but depth is None; pass depth and"):
        call(config(**DEPTHG))
    with pytest.raises(ValueError, match="depth_sampling='fps' needs depth maps, but depth_pos is None"):
        call(config(**DEPTHG), depth=[depth])
    random = config(**DEPTHG | {"depth_sampling": "none"})
    with pytest.raises(ValueError, match="depth_feat_correlation_loss=True needs depth maps, but depth is None"):
        call(random)
    assert len(call(random, depth=[depth])) == 8  # the positives' depth is for farthest points alone
    assert len(call(config(**DEPTHG | {"depth_sampling": "none", "depth_feat_correlation_loss": False}))) == 6


@pytest.mark.parametrize("shape", [(3, 5), (2, 1, 5, 5), (3, 2, 5, 5), (3, 0, 5), (2, 5, 5)])
def test_wrong_depth_shapes(shape):
    good, bad = torch.rand(3, 5, 5, device=DEVICE), torch.rand(*shape, device=DEVICE)
    for name, maps in (("depth", [bad, good]), ("depth_pos", [good, bad])):
        with pytest.raises(ValueError, match=rf"{name} must be \[3, 1, height, width\] or .*, got \({shape[0]}, "):
            call(config(**DEPTHG), depth=maps)


def test_wrong_depth_types():
    depth = torch.rand(3, 5, 5, device=DEVICE)
    with pytest.raises(TypeError, match=r"depth_pos must be floating point, got torch.uint8; call depth_pos.float\(\)"):
        call(config(**DEPTHG), depth=[depth, depth.to(torch.uint8)])
    with pytest.raises(ValueError, match=r"depth requires grad, but only codes get gradients"):
        call(config(**DEPTHG), depth=[depth.clone().requires_grad_(), depth])


def test_wrong_salience():
    cfg, good = config(use_salience=True), torch.ones(3, 5, 5, device=DEVICE)
    with pytest.raises(ValueError, match="use_salience=True needs salience maps, but orig_salience is None; pass"):
        call(cfg)
    with pytest.raises(
        ValueError, match=r"orig_salience_pos must be \[3, height, width\], got \(3, 1, 5, 5\); squeeze"
    ):
        call(cfg, salience=[good, good[:, None]])


def test_the_call_of_the_released_trainer():
    """It names the depth maps, and passes None for them when there is no depth term."""
    feats, codes, depth = vectors(3, 4, 5, 5), vectors(3, 4, 5, 5), torch.rand(3, 1, 40, 40, device=DEVICE)
    module = ContrastiveCorrelationLoss(config(fps_gpu=False, **DEPTHG))
    assert len(module(feats, feats, None, None, codes, codes, depth=depth, depth_pos=depth)) == 8
    module.cfg.depth_sampling, module.cfg.depth_feat_correlation_loss = "none", False
    assert len(module(feats, feats, None, None, codes, codes, None, None)) == 6


def test_no_negatives():
    feats, codes = vectors(3, 4, 5, 5), vectors(3, 4, 5, 5)
    values = ContrastiveCorrelationLoss(config(neg_samples=0))(feats, feats, None, None, codes, codes)
    assert values[4].item() == 0 and values[0].device.type == DEVICE
