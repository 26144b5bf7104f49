"""One step: pairings, sharing of points, every loss option at both values, against written-out definitions."""

import dataclasses

import numpy as np
import pytest
import torch
from miniature import settings
from rich.console import Console

from depthg.features.preparation import Preparation
from depthg.kernels import reference
from depthg.runtime.processes import BatchShare
from depthg.runtime.seeds import seed_of
from depthg.training.batches import draw_batch, negative_pairs
from depthg.training.step import Model, Step
from depthg.training.trainer import check_data, check_shares

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(shared_tree):
    return shared_tree


@pytest.fixture(scope="module")
def prepared(root):
    found = {}

    def get(*overrides: str):
        if overrides not in found:
            config = settings(root, *overrides)
            found[overrides] = config, Preparation(config, CPU).run()
        return found[overrides]

    return get


def make_step(config, data) -> Step:
    torch.manual_seed(0)
    return Step(config, data, Model(data.transform.channels, config.head.dim, config.head.dropout, 11, 11), CPU)


def record(monkeypatch, step, iteration=0):
    """What a step hands to the loss."""
    seen = {}

    def spy(feats, codes, near_feats, near_codes, negatives, settings, **others):
        seen.update(feats=feats, codes=codes, near_feats=near_feats, negatives=negatives, settings=settings, **others)
        return reference.depthg_loss(feats, codes, near_feats, near_codes, negatives, settings, **others)

    monkeypatch.setattr("depthg.training.step.depthg_loss", spy)
    seen["losses"], seen["logged"] = step.losses(iteration)
    return seen


def test_derangements_never_pair_an_image_with_itself():
    rows = negative_pairs(5, 400, "derangement", torch.Generator().manual_seed(0))
    assert (rows != torch.arange(5)).all()
    assert (rows.sort(1).values == torch.arange(5)).all()
    assert len({tuple(row) for row in rows.tolist()}) == 44, "all derangements of five"


def test_released_pairs_are_stegos():
    generator = torch.Generator().manual_seed(0)
    rows = negative_pairs(16, 300, "released", generator)
    generator = torch.Generator().manual_seed(0)
    for row in rows:
        expected = torch.randperm(16, generator=generator)
        expected[expected == torch.arange(16)] += 1
        assert torch.equal(row, expected % 16)
    share = np.mean([len(set(row.tolist())) < 16 for row in rows])
    assert 0.5 < share < 0.75, "most draws are no permutation"


def test_an_epoch_shows_every_image_once_and_draws_close_neighbours(prepared):
    config, data = prepared("batch_size=2", "knn.draw=2")
    batches = [draw_batch(config, data, iteration) for iteration in range(3)]
    assert sorted(np.concatenate([batch.anchors for batch in batches])) == list(range(6))
    for iteration in range(40):
        batch = draw_batch(config, data, iteration)
        for anchor, neighbour in zip(batch.anchors, batch.neighbours, strict=True):
            assert neighbour in data.neighbours[anchor, :2]


def test_a_batch_larger_than_the_data_is_an_error(prepared):
    config, data = prepared("batch_size=2", "knn.draw=2")
    with pytest.raises(ValueError, match="batch_size=7 exceeds the 6 training images"):
        draw_batch(dataclasses.replace(config, batch_size=7), data, 0)


def test_the_last_smaller_batch_of_an_epoch_is_dropped_or_kept(prepared):
    config, data = prepared("batch_size=4", "knn.draw=2", "loss.negative.draws=3")
    assert [len(draw_batch(config, data, t).anchors) for t in range(3)] == [4, 4, 4]
    kept = dataclasses.replace(config, last_batch="keep")
    first, last, again = (draw_batch(kept, data, t) for t in range(3))
    assert [len(batch.anchors) for batch in (first, last, again)] == [4, 2, 4]
    assert sorted([*first.anchors, *last.anchors]) == list(range(6)), "every image once an epoch"
    assert np.array_equal(first.anchors, draw_batch(config, data, 0).anchors)
    step = make_step(kept, data)
    losses, _ = step.losses(1)
    sum(losses.values()).backward()
    assert step.negatives(2, 1, step.generator("any")).shape == (3, 2)
    assert all(p.grad.isfinite().all() for p in step.model.parameters())


def test_a_last_batch_of_one_image_has_no_negative_that_is_another_one(prepared):
    config, data = prepared("batch_size=5", "last_batch=keep")
    with pytest.raises(ValueError, match=r"6 images in batches of 5 holds one image.*last_batch=drop"):
        check_data(config, data, Console())
    released = dataclasses.replace(config.loss.negative, pairing="released")
    config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, negative=released))
    check_data(config, data, Console())
    assert make_step(config, data).losses(1)[0]["total"].isfinite(), "as in the released code: its own negative"


def test_a_kept_last_batch_cannot_be_divided_among_processes(prepared, monkeypatch):
    config, _ = prepared("last_batch=keep", "batch_size=2")
    check_shares(config)
    monkeypatch.setattr("depthg.runtime.processes.share_of", lambda *_: BatchShare(0, 1, 2))
    with pytest.raises(ValueError, match="last_batch=keep cannot be divided"):
        check_shares(config)


def test_depth_decays_before_or_after_the_step(prepared, monkeypatch):
    for decay, expected in (("before", (0.2, 0.1, 0.1)), ("after", (0.2, 0.2, 0.1))):
        settings = ("loss.depth.factor=0.5", "loss.depth.every=3", f"loss.depth.decay={decay}", "loss.depth.shift=0.4")
        step = make_step(*prepared(*settings))
        seen = [record(monkeypatch, step, t) for t in (2, 3, 4)]
        assert tuple(found["settings"].depth_weight for found in seen) == pytest.approx(expected)
        assert tuple(found["settings"].depth_shift for found in seen) == pytest.approx([2 * x for x in expected])


def test_seeds_differ_by_purpose():
    assert len({seed_of(0, "a"), seed_of(0, "b"), seed_of(1, "a"), seed_of(0, "a", 1)}) == 4


def test_cells_share_one_sampling_and_depth_is_read_at_them(prepared, monkeypatch):
    config, data = prepared("head.dropout=0")
    step = make_step(config, data)
    seen = record(monkeypatch, step)
    batch = draw_batch(config, data, 0)
    points = step.points(batch.anchors, 0, step.generator("any"))  # fps from cell 0 draws nothing
    for n, view in enumerate(batch.anchors):
        cells = points[n].numpy()
        assert torch.equal(seen["feats"][n], torch.from_numpy(data.features[view][cells]).float())
        assert torch.equal(seen["depth"][n], torch.from_numpy(data.depth[view][cells]).float())
    assert "feats_negative" not in seen, "negatives are the anchors at their own points"
    assert seen["negatives"].shape == (5, 6)


def test_points_per_side_follow_the_schedule(prepared, monkeypatch):
    config, data = prepared("sampling.schedule=[[1,3],[5,2]]")
    step = make_step(config, data)
    assert [record(monkeypatch, step, t)["feats"].shape[1] for t in (0, 1, 4, 5)] == [16, 9, 9, 4]


def test_negatives_at_the_neighbours_points(prepared, monkeypatch):
    config, data = prepared("sampling.negatives=neighbour", "head.dropout=0")
    step = make_step(config, data)
    seen = record(monkeypatch, step)
    batch = draw_batch(config, data, 0)
    near_points = step.points(batch.neighbours, 0, step.generator("any"))
    pairs = negative_pairs(6, 5, "derangement", step.generator("step", 0))
    for r, n in ((0, 0), (4, 3)):
        row = seen["feats_negative"][seen["negatives"][r, n]]
        view = batch.anchors[pairs[r, n]]
        assert torch.equal(row, torch.from_numpy(data.features[view][near_points[n].numpy()]).float())


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (("probe.cells=0",), {"maps of anchors", "neighbours"}),
        (("probe.cells=20",), {"anchors", "neighbours", "probes"}),
        (("sampling=random", "sampling.read=bilinear"), {"maps of anchors", "maps of neighbours"}),
        (
            ("data.crop=five", "loss.depth.pair=crop", "probe.cells=20"),
            {"anchors", "neighbours", "others", "probes"},
        ),
    ],
)
def test_memory_of_a_step_is_used_again_and_changes_nothing(prepared, overrides, names):
    config, data = prepared(*overrides)
    step, fresh = make_step(config, data), make_step(config, data)
    sum(step.losses(0)[0].values()).backward()
    places = {name: memory.data_ptr() for name, memory in step.buffers.items()}
    assert places.keys() == names and len(set(places.values())) == len(names)
    losses, gradients = [], []
    for other in (step, fresh):
        other.model.zero_grad()
        losses.append(sum(other.losses(1)[0].values()))
        losses[-1].backward()
        gradients.append([p.grad for p in other.model.parameters()])
    assert torch.equal(*losses) and all(map(torch.equal, *gradients))
    assert {name: memory.data_ptr() for name, memory in step.buffers.items()} == places


def test_bilinear_reading_interpolates_features_and_codes(prepared, monkeypatch):
    config, data = prepared("sampling=random", "sampling.read=bilinear", "head.dropout=0")
    step = make_step(config, data)
    seen = record(monkeypatch, step)
    batch = draw_batch(config, data, 0)
    points = step.points(batch.anchors, 0, step.generator("step", 0))
    maps = step.rows(data.features, batch.anchors)
    for name, values in (("feats", maps), ("codes", step.model.head(maps))):
        expected = reference.sample_points(values.transpose(1, 2).unflatten(2, (8, 8)), points)
        torch.testing.assert_close(seen[name], expected)


def test_dropout_of_features_for_f_is_an_option(prepared, monkeypatch):
    for given, dropped in (("true", True), ("false", False)):
        config, data = prepared(f"loss.feature_dropout={given}", "head.dropout=0.5")
        feats = record(monkeypatch, make_step(config, data))["feats"]
        assert bool((feats == 0).all(1).any()) == dropped


@pytest.mark.parametrize("relation", [*reference.RELATIONS, "inclination"])
def test_every_relation_gives_a_gradient(prepared, relation):
    config, data = prepared(f"loss.depth.relation={relation}")
    step = make_step(config, data)
    losses, logged = step.losses(0)
    losses["total"].backward()
    assert torch.isfinite(logged["loss.depth"])
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in step.model.head.parameters())
    assert step.model.linear.weight.grad is None and step.model.cluster.centroids.grad is None


def test_inclinations_are_made_from_the_normals_at_the_points(prepared, monkeypatch):
    seen = {}
    for relation in ("normals", "inclination"):
        config, data = prepared(f"loss.depth.relation={relation}")
        seen[relation] = record(monkeypatch, make_step(config, data))
    normals, values = seen["normals"]["depth"], seen["inclination"]["depth"]
    torch.testing.assert_close(values[..., 0] ** 2, normals[..., 0] ** 2 + normals[..., 2] ** 2)
    assert torch.equal(values[..., 1:], normals[..., [1, 3]])
    assert seen["inclination"]["settings"].relation == "normals"


@pytest.mark.parametrize("relation", ["normals", "inclination"])
def test_relations_of_surfaces_need_metric_depth(prepared, relation):
    config, data = prepared(f"loss.depth.relation={relation}")
    step = make_step(config, dataclasses.replace(data, normals=None))
    with pytest.raises(ValueError, match=rf"{relation} needs metric depth"):
        step.losses(0)


def test_probes_pass_no_gradient_to_the_head(prepared):
    step = make_step(*prepared())
    losses, _ = step.losses(0)
    (losses["linear"] + losses["cluster"]).backward()
    assert all(p.grad is None for p in step.model.head.parameters())
    assert step.model.linear.weight.grad.abs().sum() > 0 < step.model.cluster.centroids.grad.abs().sum()


def test_depth_on_a_grid_knows_nothing_of_the_points(prepared, monkeypatch):
    seen = {}
    for at in ("points", "grid"):
        config, data = prepared(f"loss.depth.at={at}", "sampling.start=random")
        step = make_step(config, data)
        seen[at] = record(monkeypatch, step)["depth"]
    assert seen["grid"].shape == seen["points"].shape
    batch = draw_batch(config, data, 0)
    views = Preparation(config, CPU)
    depth = [views.mapped_depth(data.dataset.train, views.depth_source)(i) for i in batch.anchors]
    maps = torch.from_numpy(np.stack(depth))[:, None]  # at the size of the photos and views, 64 x 64
    expected = torch.nn.functional.interpolate(maps, (4, 4), mode="bilinear", align_corners=True)
    torch.testing.assert_close(seen["grid"], expected[:, 0].transpose(1, 2).flatten(1))
    assert not torch.equal(seen["grid"], seen["points"])


def test_the_other_crop_of_the_photo(prepared, monkeypatch):
    config, data = prepared("data.crop=five", "loss.depth.pair=crop", "head.dropout=0")
    step = make_step(config, data)
    seen = record(monkeypatch, step)
    batch = draw_batch(config, data, 0)
    assert (data.photos[batch.others] == data.photos[batch.anchors]).all() and (batch.others != batch.anchors).all()
    points = step.points(batch.others, 0, step.generator("any"))
    torch.testing.assert_close(seen["depth_other"], step.depth_values(batch.others, points, 4))
    feats = step.rows(data.features, batch.others).gather(1, points[..., None].expand(-1, -1, 16))
    torch.testing.assert_close(seen["codes_depth"], step.model.head(feats))
    assert (data.photos[data.neighbours] != data.photos[:, None]).all(), "neighbours are other photos"


def test_weight_and_shift_decay_to_their_minimum(prepared, monkeypatch):
    config, data = prepared(
        "loss.depth.shift=0.1", "loss.depth.factor=0.5", "loss.depth.every=10", "loss.depth.weight_minimum=0.04",
        "loss.depth.shift_minimum=0.01",
    )  # fmt: skip
    step = make_step(config, data)
    for iteration, weight, shift in ((0, 0.2, 0.1), (10, 0.1, 0.05), (200, 0.04, 0.01)):
        seen = record(monkeypatch, step, iteration)["settings"]
        assert (seen.depth_weight, seen.depth_shift) == pytest.approx((weight, shift))


def test_shift_mean_is_the_batch_mean_of_d(prepared, monkeypatch):
    config, data = prepared("loss.depth.shift_mean=true")
    seen = record(monkeypatch, make_step(config, data))
    expected = reference.depth_relation(seen["depth"], seen["depth"]).mean()
    torch.testing.assert_close(seen["settings"].depth_shift, expected)


@pytest.mark.parametrize("source", ["none", "folder"])
@pytest.mark.parametrize("sampling", ["fps", "random"])
@pytest.mark.parametrize("weight", [0, 0.2])
def test_every_combination_of_depth_term_and_sampling_works(prepared, source, sampling, weight):
    config, data = prepared(f"depth.source={source}", f"sampling={sampling}", f"loss.depth.weight={weight}")
    losses, logged = make_step(config, data).losses(0)
    assert torch.isfinite(losses["total"])
    assert ("loss.depth" in logged) == (source == "folder" and weight > 0)


def test_auto_shifts_are_quantiles_of_centred_f(prepared):
    config, data = prepared("loss.shifts=auto", "loss.quantiles=[0.3,0.5,0.9]")
    step = make_step(config, data)
    values = [[], [], []]
    for number in range(12):
        generator = step.generator("shifts", number)
        batch = draw_batch(config, data, number)
        pairs = negative_pairs(6, 5, "derangement", generator)
        a, b = (step.plain_features(views, generator) for views in (batch.anchors, batch.neighbours))
        for row, (other, index) in enumerate(((a, None), (b, None), (a, pairs))):
            values[row].append(reference.correlation(a, other, index_b=index, center=True).flatten())
    for found, tensors, quantile in zip(step.auto_shifts(), values, (0.3, 0.5, 0.9), strict=True):
        everything = torch.cat(tensors).sort().values
        assert found == pytest.approx(everything[int(quantile * len(everything))].item(), abs=2e-3)


@pytest.mark.parametrize("option", ["loss.center", "loss.clamp"])
def test_centring_and_clamp_reach_the_loss(prepared, monkeypatch, option):
    seen = [record(monkeypatch, make_step(*prepared(f"{option}={value}")))["settings"] for value in ("true", "false")]
    assert [getattr(s, option.split(".")[1]) for s in seen] == [True, False]


def test_released_mode_runs_with_its_own_coordinates(prepared, monkeypatch):
    config, data = prepared("mode=released", "loss.depth.relation=unit")
    step = make_step(config, data)
    seen = record(monkeypatch, step)
    assert seen["feats_negative"].shape[0] == 30 and torch.isfinite(seen["losses"]["total"])
    assert seen["settings"].relation == "unit"
