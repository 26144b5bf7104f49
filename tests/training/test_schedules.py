"""Schedules: hand-made values, and properties that hold for any settings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthg.config import load_config
from depthg.training.schedules import exponential_decay, piecewise_constant, restart_iteration, unreached


def test_decay_by_hand():
    values = [exponential_decay(t, 0.8, factor=0.5, every=10) for t in (0, 9, 10, 19, 20, 35)]
    assert values == [0.8, 0.8, 0.4, 0.4, 0.2, 0.1]


def test_decay_of_the_coco_preset():
    assert exponential_decay(2333, 0.19, factor=0.6, every=250) == pytest.approx(0.19 * 0.6**9)


def test_decay_after_the_step_shows_one_iteration_later():
    values = [exponential_decay(t, 0.8, factor=0.5, every=10, after=True) for t in (0, 1, 10, 11, 20, 21, 35)]
    assert values == [0.8, 0.8, 0.8, 0.4, 0.4, 0.2, 0.1]
    assert all(
        exponential_decay(t, 0.19, factor=0.6, every=250, after=True) == 0.19 * 0.6 ** ((t - 1) // 250)
        for t in range(1, 2334)
    )


def test_every_zero_and_factor_one_are_constant():
    assert exponential_decay(999, 0.3, factor=0.5, every=0) == 0.3
    assert exponential_decay(999, 0.3, factor=1.0, every=10) == 0.3


@given(
    t=st.integers(0, 10_000),
    initial=st.floats(0, 10),
    factor=st.floats(0, 1),
    every=st.integers(1, 500),
    minimum=st.floats(0, 1),
    after=st.booleans(),
)
def test_decay_never_rises_and_never_falls_below_the_minimum(t, initial, factor, every, minimum, after):
    given = {"factor": factor, "every": every, "minimum": minimum, "after": after}
    now, later = (exponential_decay(i, initial, **given) for i in (t, t + 1))
    assert later <= now <= initial
    assert later >= min(minimum, initial)


def test_points_of_the_released_coco_run():
    sampling = load_config(["experiment=cocostuff27_vits8", "mode=released"]).sampling
    points = [piecewise_constant(t, sampling.points, sampling.schedule) for t in (0, 1, 1000, 1001, 2000, 2001, 2333)]
    assert points == [11, 9, 9, 8, 8, 7, 7]


def test_no_changes_keep_the_initial_value_and_order_does_not_matter():
    assert piecewise_constant(7, 11, []) == 11
    assert piecewise_constant(5, 11, [[4, 2], [1, 9]]) == piecewise_constant(5, 11, [[1, 9], [4, 2]]) == 2


def test_presets_restart_where_they_did_as_fixed_iterations():
    found = [load_config([f"experiment={name}"]) for name in ("demo", "camvid")]
    assert [restart_iteration(config.probe.reinit, config.iterations) for config in found] == [490, 250]


@given(share=st.floats(0, 1, exclude_min=True, exclude_max=True), iterations=st.integers(1, 10_000))
def test_a_share_restarts_inside_every_run(share, iterations):
    restart = restart_iteration(share, iterations)
    assert 1 <= restart <= iterations and abs(restart - share * iterations) <= 1


def test_a_whole_number_is_an_iteration_and_one_beyond_the_end_is_never_reached():
    assert [restart_iteration(490, n) for n in (500, 490, 489)] == [490, 490, 0]
    assert restart_iteration(0, 500) == restart_iteration(0.5, 0) == 0
    with pytest.raises(ValueError, match=r"probe\.reinit=1\.5 must be below 1"):
        load_config(["probe.reinit=1.5"])


LATE = {
    "val.every=101": "val.every=101",
    "checkpoint.every=101": "checkpoint.every=101",
    "log_every=101": "log_every=101",
    "probe.reinit=101": "probe.reinit=101",
    "sampling.schedule=[[50,9],[100,8]]": "sampling.schedule=[[100, 8]]",
    "loss.depth.every=100": "loss.depth.every=100",
}


@pytest.mark.parametrize("setting", LATE)
def test_a_schedule_beyond_the_end_is_named(setting):
    usual = ["iterations=100", "loss.depth.factor=0.5"]
    assert unreached(load_config(usual)) == []
    assert unreached(load_config([*usual, setting])) == [LATE[setting]]
    assert unreached(load_config([*usual, setting, "iterations=102"])) == []


def test_a_decay_after_the_step_needs_one_iteration_more():
    usual = ["loss.depth.factor=0.5", "loss.depth.every=100", "loss.depth.decay=after"]
    assert unreached(load_config([*usual, "iterations=101"])) == ["loss.depth.every=100"]
    assert unreached(load_config([*usual, "iterations=102"])) == []
    assert unreached(load_config([*usual, "iterations=101", "loss.depth.weight=0"])) == []
