"""Settings of STEGO and DepthG in the terms of this package.

Time is counted in iterations, and what DepthG lowers in its own settings during training gets the value it began with:
a checkpoint holds the lowered one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from depthg.config.schema import options

SETTINGS = {  # numeric settings of the checkpoint -> settings of this package
    "pos_intra_weight": "loss.self.weight", "pos_intra_shift": "loss.self.shift",
    "pos_inter_weight": "loss.neighbour.weight", "pos_inter_shift": "loss.neighbour.shift",
    "neg_inter_weight": "loss.negative.weight", "neg_inter_shift": "loss.negative.shift",
    "neg_samples": "loss.negative.draws", "pointwise": "loss.center", "zero_clamp": "loss.clamp",
    "dropout": "loss.feature_dropout", "feature_samples": "sampling.points", "num_neighbors": "knn.draw",
    "batch_size": "batch_size", "lr": "head.lr", "crop_ratio": "data.crop_ratio",
}  # fmt: skip
OPTIMISERS = 3  # of head, linear probe and cluster probe, one step each in an iteration
COUNTS_OPTIMISERS = (1, 6)  # from this version on, Lightning counts the steps of all optimisers
USUAL_POINTS = 11  # per side, the default of both projects
MOST_CHANGES = 100  # of the points per side
MOST_DECAYS = 10_000


def steps_per_iteration(version: object) -> int:
    """Lightning's steps in an iteration of STEGO or DepthG, by Lightning's version (text; the newer rule without)."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})", version) if isinstance(version, str) else None
    older = found is not None and tuple(map(int, found.groups())) < COUNTS_OPTIMISERS
    return 1 if older else OPTIMISERS


def run_settings(settings: Mapping[str, Any], done: int, per: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the run that a checkpoint describes; takes only known names, finite numbers and known words.

    Args:
        settings: those of the checkpoint.
        done: iterations up to the checkpoint.
        per: Lightning's steps per iteration.

    Returns:
        Keys and values for `Config`, and those lowered during training: ``{key: {"recorded": ..., "initial": ...}}``.
    """
    given = {key: value for key, value in settings.items() if _is_number(value)}
    found = {key: given[name] for name, key in SETTINGS.items() if name in given}
    if found.get("knn.draw", 0) > options()["knn.k"][1]:
        found["knn.k"] = found["knn.draw"]
    total = given.get("max_steps", 0)
    found["iterations"] = math.ceil(total / per) if total >= 1 else done
    if settings.get("crop_type") == "five" and settings.get("dataset_name") not in ("potsdam", "potsdam3"):
        found["data.crop"] = "five"
    lowered: dict[str, Any] = {}
    if settings.get("use_depth") is True:
        found["depth.source"] = "model"
    if settings.get("depth_sampling") == "fps":
        found["sampling.method"] = "fps"
    if settings.get("depth_feat_correlation_loss") is True:
        found |= _depth_term(settings, given, done, per, lowered)
    if settings.get("fps_sample_decay") is True and "sampling.points" in found:
        found |= _points(given, done, found["iterations"], per, lowered)
    known = options()
    return {key: value for key, value in found.items() if _fits(known[key][0].metadata, value)}, lowered


def _depth_term(settings: Mapping, given: Mapping, done: int, per: int, lowered: dict) -> dict[str, Any]:
    """Weight and shift of the depth term at the start, and their decay."""
    weight, shift = (float(given.get(f"depth_feat_{name}", 0)) for name in ("weight", "shift"))
    factor, every = given.get("depth_loss_decay_factor", 1), _iterations(given.get("decay_every_steps"), per)
    if settings.get("depth_loss_decay") is not True or not every or not 0 < factor < 1:
        return {"loss.depth.weight": weight, "loss.depth.shift": shift}
    fixed = settings.get("fix_depth_feat_shift") is True
    times = max(0, done - 1) // every
    found: dict[str, Any] = {"loss.depth.factor": factor, "loss.depth.every": every}
    for name, value in (("weight", weight), ("shift", shift)):
        start = value if name == "shift" and fixed else before_decay(value, factor, times)
        found[f"loss.depth.{name}"] = start
        if start != value:
            lowered[f"loss.depth.{name}"] = {"recorded": value, "initial": start}
    return found | ({"loss.depth.shift_minimum": shift} if fixed else {})


def before_decay(value: float, factor: float, times: int) -> float:
    """The shortest decimal number that gives ``value`` after ``times`` multiplications by ``factor``.

    Where none of up to 17 digits does, it is the quotient; where that cannot be formed, ``value``.
    """

    def decayed(start: float) -> float:
        for _ in range(times):
            start *= factor
        return start

    power = factor**times
    quotient = value / power if power else math.inf
    if not math.isfinite(quotient) or times > MOST_DECAYS:
        return value
    candidates = (float(f"{quotient:.{digits}g}") for digits in range(1, 18))
    return next((start for start in candidates if decayed(start) == value), quotient)


def _points(given: Mapping, done: int, total: int, per: int, lowered: dict) -> dict[str, Any]:
    """Points per side at the start, and the iterations at which they fall; the first time after iteration 0."""
    factor, every = given.get("fps_sample_decay_factor", 1), _iterations(given.get("fps_sample_decay_every_steps"), per)
    recorded, least = int(given["feature_samples"]), max(1, int(given.get("fps_min_samples", 0)))
    if not every or not 0 < factor < 1:
        return {}

    def later(points: int) -> int:
        return max(least, int(points * factor))

    def after(points: int, changes: int) -> int:
        for _ in range(min(changes, MOST_CHANGES)):
            points = later(points)
        return points

    changes = 0 if done < 1 else (done - 1) // every + 1
    possible = [points for points in range(1, 65) if after(points, changes) == recorded]
    start = USUAL_POINTS if USUAL_POINTS in possible else min(possible, default=recorded)
    if start != recorded:
        lowered["sampling.points"] = {"recorded": recorded, "initial": start}
    schedule: list[list[int]] = []
    points, iteration = start, 1
    while iteration < total and later(points) != points and len(schedule) < MOST_CHANGES:
        points = later(points)
        schedule.append([iteration, points])
        iteration += every
    return {"sampling.points": start, "sampling.schedule": schedule}


def _iterations(steps: object, per: int) -> int:
    """Iterations between two steps that ``steps`` divides, when only every ``per``-th step is looked at; 0: never."""
    if not isinstance(steps, (int, float)) or not 1 <= steps <= 10**9 or int(steps) != steps:
        return 0
    return math.lcm(int(steps), per) // per


def _is_number(value: object) -> bool:
    return isinstance(value, (bool, int, float)) and math.isfinite(value)


def _fits(metadata: Mapping, value: Any) -> bool:
    low, high = metadata.get("low"), metadata.get("high")
    return not ((low is not None and value < low) or (high is not None and value > high))
