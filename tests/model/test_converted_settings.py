"""Settings of checkpoints against a written-out training that lowers its own settings, and against our presets."""

import pytest

from depthg.config.composing import load_config
from depthg.config.schema import options
from depthg.model.converted_settings import before_decay, run_settings, steps_per_iteration

COMMON = {
    "max_steps": 7000, "batch_size": 32, "num_neighbors": 7, "crop_type": "five", "crop_ratio": 0.5, "lr": 5e-4,
    "dropout": True, "zero_clamp": True, "pointwise": True, "feature_samples": 11, "neg_samples": 5, "use_depth": True,
    "depth_feat_correlation_loss": True, "depth_loss_decay": True, "fix_depth_feat_shift": False, "fps_min_samples": 0,
    "fps_sample_decay": False, "fps_sample_decay_every_steps": 300, "fps_sample_decay_factor": 0.9,
    "depth_sampling": "fps",
}  # fmt: skip


def terms(*values):
    names = [f"{pair}_{kind}" for pair in ("pos_intra", "pos_inter", "neg_inter") for kind in ("weight", "shift")]
    names += ["depth_feat_weight", "depth_feat_shift"]
    return dict(zip(names, values, strict=True))


RUNS = {  # settings of the four published runs of DepthG
    "cocostuff27_vits8": {
        **COMMON, **terms(0.58, 0.07, 0.36, 0.025, 0.7, 0.761, 0.19, 0.03), "depth_loss_decay_factor": 0.6,
        "decay_every_steps": 250, "fps_sample_decay": True, "fps_sample_decay_every_steps": 1000,
        "dataset_name": "cocostuff27",
    },
    "cocostuff27_vitb8": {
        **COMMON,
        **terms(
            0.23052367315917113, 0.12326312284078644, 1.0500945312858674, 0.21028290947990444, 0.2485038032028848,
            0.9748103425096648, 0.16026274975444096, 0.035909146298813595,
        ),
        "depth_loss_decay_factor": 0.64, "decay_every_steps": 300, "feature_samples": 12, "fps_sample_decay": True,
        "fps_sample_decay_every_steps": 1000, "fps_sample_decay_factor": 1, "dataset_name": "cocostuff27",
    },
    "cityscapes_vitb8": {
        **COMMON, **terms(0.95, 0.39, 1.02, 0.25, 0.57, 0.26, 0.09, 0.03), "depth_loss_decay_factor": 0.8,
        "decay_every_steps": 400, "depth_sampling": "none", "pointwise": False, "dataset_name": "cityscapes",
    },
    "potsdam3_vits8": {
        **COMMON, **terms(0.61, 0.2, 0.34, 0.09, 0.72, 0.63, 0.13, 0.14), "depth_loss_decay_factor": 1,
        "decay_every_steps": 200, "dataset_name": "potsdam", "batch_size": 16,
    },
}  # fmt: skip


def recorded(settings, iterations, per=3):
    """What a training of so many iterations leaves of its settings: they are lowered after a step's loss."""
    found = dict(settings)
    for step in range(0, iterations * per, per):
        if found["depth_loss_decay"] and step and step % found["decay_every_steps"] == 0:
            found["depth_feat_weight"] *= found["depth_loss_decay_factor"]
            if not found["fix_depth_feat_shift"]:
                found["depth_feat_shift"] *= found["depth_loss_decay_factor"]
        if found["fps_sample_decay"] and step % found["fps_sample_decay_every_steps"] == 0:
            fewer = int(found["feature_samples"] * found["fps_sample_decay_factor"])
            found["feature_samples"] = max(fewer, found["fps_min_samples"])
    return found


@pytest.mark.parametrize("iterations", [1, 250, 251, 1000, 1001, 2300, 2334])
@pytest.mark.parametrize("name", RUNS)
def test_a_checkpoint_at_any_time_gives_the_settings_of_our_preset(name, iterations):
    left = recorded(RUNS[name], iterations)
    found, lowered = run_settings(left, iterations, 3)
    preset = options(load_config([f"experiment={name}", "mode=released"]))
    for key, value in found.items():
        if (key, value) == ("loss.depth.every", 0) or key == "loss.depth.shift_minimum":
            continue
        expected = preset[key][1]
        expected = pytest.approx(expected, rel=1e-14, abs=0) if isinstance(expected, float) else expected
        assert value == expected, key
    assert {"loss.self.shift", "loss.depth.weight", "loss.depth.shift", "iterations"} <= found.keys()
    schedule = found.get("sampling.schedule", [])
    assert schedule == preset["sampling.schedule"][1]
    assert ("sampling.method" in found) == (preset["sampling.method"][1] == "fps")
    assert ("data.crop" in found) == (preset["data.crop"][1] == "five")
    assert ("sampling.points" in lowered) == (name == "cocostuff27_vits8")
    changed = left["depth_feat_weight"] != RUNS[name]["depth_feat_weight"]
    assert ("loss.depth.weight" in lowered) == changed


def test_exact_decimals_come_back():
    assert run_settings(recorded(RUNS["cocostuff27_vits8"], 2334), 2334, 3)[0]["loss.depth.weight"] == 0.19
    for start, factor, times in ((0.19, 0.6, 9), (0.03, 0.8, 25), (0.13, 0.99, 400), (0.5, 0.64, 0)):
        value = start
        for _ in range(times):
            value *= factor
        assert before_decay(value, factor, times) == start
    assert before_decay(1e-300, 0.5, 3000) == 1e-300, "beyond what a number holds"


def test_a_shift_that_does_not_decay_stays():
    left = recorded({**RUNS["cocostuff27_vits8"], "fix_depth_feat_shift": True}, 600)
    found, lowered = run_settings(left, 600, 3)
    assert (found["loss.depth.shift"], found["loss.depth.shift_minimum"]) == (0.03, 0.03)
    assert found["loss.depth.weight"] == 0.19 and "loss.depth.shift" not in lowered


def test_points_stop_at_the_least():
    settings = {**RUNS["cocostuff27_vits8"], "fps_min_samples": 8, "fps_sample_decay_every_steps": 300}
    found, _ = run_settings(recorded(settings, 500), 500, 3)
    assert (found["sampling.points"], found["sampling.schedule"]) == (11, [[1, 9], [101, 8]])


def test_steps_are_those_of_lightnings_version():
    for version, steps in (("1.4.2", 1), ("1.5.10", 1), ("1.6.0", 3), ("2.0.1.post0", 3), (None, 3), ("x", 3), (7, 3)):
        assert steps_per_iteration(version) == steps
    every = run_settings({**RUNS["cocostuff27_vits8"], "decay_every_steps": 250}, 10, 1)[0]["loss.depth.every"]
    assert every == 250 and run_settings(RUNS["cocostuff27_vitb8"], 10, 3)[0]["loss.depth.every"] == 100


@pytest.mark.parametrize(
    "settings",
    [
        {"depth_loss_decay_factor": float("nan")}, {"depth_loss_decay_factor": 0}, {"depth_loss_decay_factor": 1e9},
        {"decay_every_steps": -3}, {"decay_every_steps": 1e300}, {"decay_every_steps": "250"}, {"feature_samples": -4},
        {"fps_sample_decay_factor": 0}, {"fps_sample_decay_every_steps": 0}, {"max_steps": -1}, {"crop_ratio": 9},
        {"depth_feat_weight": "${oc.env:HOME}"}, {"num_neighbors": 50}, {"batch_size": 0}, {"fps_min_samples": -1e9},
    ],
)  # fmt: skip
def test_odd_settings_are_left_out_and_quick(settings):
    found, _ = run_settings({**RUNS["cocostuff27_vits8"], **settings}, 10**9, 3)
    config = load_config([f"{key}={str(value).replace(' ', '')}" for key, value in found.items()])
    assert config.loss.self.weight == 0.58


def test_stego_has_no_depth_and_random_points():
    plain = {key: value for key, value in COMMON.items() if "depth" not in key and "fps" not in key}
    found, lowered = run_settings({**plain, "max_steps": 5000}, 5000, 1)
    assert not lowered and not {"depth.source", "sampling.method", "loss.depth.weight"} & found.keys()
    assert found["iterations"] == 5000
