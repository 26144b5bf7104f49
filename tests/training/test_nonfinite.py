"""NaN and infinite losses: named with iteration, term and images, kept for replay, stopped at or skipped."""

import json

import numpy as np
import pytest
import torch
from miniature import settings, write_camvid

from depthg.config.composing import load_config
from depthg.model.checkpoints import read_checkpoint
from depthg.model.run_folder import read_log
from depthg.replay import main, read_step, replay
from depthg.train import train
from depthg.training import nonfinite
from depthg.training.batches import draw_batch
from depthg.training.nonfinite import FOLDER, KEPT_STEPS, as_json, first_not_finite, largest_gradients, not_finite
from depthg.training.step import Step
from depthg.training.trainer import Trainer

BROKEN = 4  # the photo with an infinite feature


@pytest.fixture
def root(tmp_path):
    return write_camvid(tmp_path / "camvid", n_train=12)


def test_stop_names_iteration_term_and_images_and_the_step_can_be_replayed(root, tmp_path, capsys):
    options = ("batch_size=2", "knn.k=2", "knn.draw=2", "probe.reinit=0")
    trainer = Trainer(settings(root, "name=first", *options))
    trainer.log.close()
    for path in (root.parent / "cache").glob("features/*/features.npy"):
        array = np.load(path, mmap_mode="r+")
        if len(array) == 12:
            array[BROKEN] = np.inf
            array.flush()
    config = settings(root, "name=a", *options)
    batches = [draw_batch(config, trainer.data, iteration) for iteration in range(20)]
    hit = [n for n, batch in enumerate(batches, 1) if BROKEN in batch.anchors or BROKEN in batch.neighbours]
    with pytest.raises(ValueError, match=rf"loss\.\w+ is nan at iteration {hit[0]}: training diverged") as caught:
        train(config)
    run = tmp_path / "runs" / "a"
    path = run / FOLDER / f"iteration-{hit[0]:07d}.json"
    assert f"depthg.replay {path}" in str(caught.value)
    kept = json.loads(path.read_text())
    assert " ".join(map(str, kept["anchors"])) in str(caught.value) and "NaN" not in path.read_text()
    assert BROKEN in kept["anchors"] + kept["neighbours"] and kept["values"][kept["term"]] == "nan"
    assert not (run / "metrics.json").exists()
    for folder in (root, tmp_path / "cache"):  # neither data nor caches are needed
        folder.rename(folder.with_name(f"away-{folder.name}"))
    assert replay(path) == kept["values"], "the same numbers, bit for bit"
    step, _ = read_step(path)
    again = [step.losses(kept["iteration"] - 1)[1][kept["term"]] for _ in range(3)] if kept["term"] != "loss" else []
    assert all(map(torch.isnan, again)), "a step that was read may run any number of times"
    missing = np.array([max(kept["anchors"] + kept["neighbours"]) + 1])
    for rows in (step.data.features, step.data.neighbours):
        with pytest.raises(IndexError, match="are kept"):
            rows.read(missing) if rows is step.data.features else rows[missing]
    assert main([str(path)]) == 0 and kept["term"] in capsys.readouterr().out


def times(monkeypatch, name, factor):
    """Multiplies one loss of a step by ``factor(iteration)``."""
    original = Step.losses

    def changed(self, iteration):
        losses, logged = original(self, iteration)
        changed = losses[name] * factor(iteration)
        return {**losses, name: changed}, {**logged, f"loss.{name}": changed.detach()} if name != "total" else logged

    monkeypatch.setattr(Step, "losses", changed)


def test_skip_leaves_weights_alone_lists_iterations_and_survives_a_resume(root, tmp_path, monkeypatch):
    times(monkeypatch, "total", lambda iteration: np.nan if iteration in (4, 5, 11, 17) else 1)
    metrics = train(settings(root, "name=a", "train.on_nan=skip", "log_every=1"))
    assert metrics["skipped_iterations"] == [5, 6, 12, 18]
    run = tmp_path / "runs" / "a"
    logged = [line["iteration"] for line in read_log(run / "metrics.jsonl") if "loss" in line]
    assert logged == [n for n in range(1, 21) if n not in (5, 6, 12, 18)]
    tensors, header = read_checkpoint(run / "checkpoints" / "last")
    assert header["skipped"] == [5, 6, 12, 18] and all(value.isfinite().all() for value in tensors.values())
    assert tensors["optimizer.head.0.step"] == 16
    assert len(list((run / FOLDER).glob("*.json"))) == KEPT_STEPS
    train(settings(root, "name=b", "train.on_nan=skip", "iterations=10"))
    again = train(load_config([f"resume={tmp_path / 'runs' / 'b'}", "iterations=20"]))
    assert again["skipped_iterations"] == [5, 6, 12, 18]
    found = read_checkpoint(tmp_path / "runs" / "b" / "checkpoints" / "last")[0]
    assert all(torch.equal(found[key], value) for key, value in tensors.items())


def test_skipping_ends_when_it_does_not_help(root, tmp_path, monkeypatch):
    times(monkeypatch, "cluster", lambda iteration: np.inf if iteration >= 5 else 1)
    with pytest.raises(ValueError, match=r"loss\.cluster is -inf at iteration 15: .* \(at most 9 in a row\)") as caught:
        train(settings(root, "name=a", "train.on_nan=skip", "probe.reinit=0", "checkpoint.every=4"))
    tensors, header = read_checkpoint(tmp_path / "runs" / "a" / "checkpoints" / "last")
    assert header["iteration"] == 12 and all(value.isfinite().all() for value in tensors.values())
    kept = sorted(path.stem for path in (tmp_path / "runs" / "a" / FOLDER).glob("*.json"))
    assert kept == [f"iteration-{number:07d}" for number in (6, 7, 8, 15)] and f"{kept[-1]}.json" in str(caught.value)


def test_an_infinite_gradient_of_a_finite_loss_is_found(root, tmp_path, monkeypatch):
    original = Step.losses

    def steep(self, iteration):
        losses, logged = original(self, iteration)
        weight = self.model.head.linear.weight
        if iteration == 3:  # sqrt has an infinite slope at 0
            losses["total"] = losses["total"] + (weight - weight.detach()).sum().clamp(min=0).sqrt() * 1.0
        return losses, logged

    monkeypatch.setattr(Step, "losses", steep)
    with pytest.raises(ValueError, match=r"d_loss of head\.linear\.weight is (nan|inf) at iteration 4"):
        train(settings(root, "name=a"))


@pytest.mark.parametrize("options", [("sampling.negatives=neighbour",), ("data.crop=five", "loss.depth.pair=crop"),
                                     ("depth.source=none", "features.dtype=bfloat16"), ("mode=released",)])  # fmt: skip
def test_a_replay_is_exact_with_other_options(root, tmp_path, options):
    config = settings(root, "name=a", *options)
    trainer = Trainer(config)
    trainer.log.close()
    losses, logged = trainer.step.losses(2)
    values = {"loss": losses["total"].detach(), **logged}
    path = nonfinite.keep_step(tmp_path / "s" / "iteration-3.json", trainer.step, 2, "loss", values)
    assert replay(path) == {key: as_json(value) for key, value in values.items()}


def test_damaged_steps_are_named(root, tmp_path, capsys):
    trainer = Trainer(settings(root, "name=a"))
    trainer.log.close()
    path = nonfinite.keep_step(tmp_path / "iteration-1.json", trainer.step, 0, "loss", {"loss": np.nan})
    beside, text = path.with_suffix(".safetensors"), path.read_text()
    whole = beside.read_bytes()
    for change in ("{", "[]", text.replace('"grid"', '"gird"'), text.replace('"batch_size": 6', '"batch_size": -6')):
        path.write_text(change)
        with pytest.raises(ValueError, match="is damaged"):
            read_step(path)
    path.write_text(text)
    beside.write_bytes(whole[:-9])
    assert main([str(path)]) == 1 and "is damaged" in capsys.readouterr().err
    beside.unlink()
    with pytest.raises(FileNotFoundError, match="safetensors"):
        read_step(path)


def test_what_is_finite():
    model = torch.nn.Linear(2, 1)
    losses = {"total": model(torch.ones(2)).sum(), "cluster": torch.tensor(1.0)}
    losses["total"].backward()
    found = largest_gradients(model)
    assert not_finite(losses, found) == 0 and first_not_finite({"loss": 1.0, "loss.self": 1.0}, found) is None
    values = {"loss": float("inf"), "similarity.self": float("nan"), "loss.self": float("inf")}
    assert first_not_finite(values, found) == ("loss.self", float("inf"))
    assert not_finite({**losses, "linear": torch.tensor(torch.nan)}, found) == 1
    model.bias.grad[0] = torch.nan
    found = largest_gradients(model)
    assert not_finite(losses, found) == 1 and first_not_finite({"loss": 1.0}, found)[0] == "d_loss of bias"
    assert [as_json(torch.tensor(x)) for x in (1.5, float("inf"), float("-inf"))] == [1.5, "inf", "-inf"]
