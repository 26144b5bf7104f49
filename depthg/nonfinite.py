"""A loss or gradient that is NaN or infinite: found before it reaches the weights, named, and kept to be seen again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from depthg import processes
from depthg.batches import draw_batch
from depthg.checkpoints import FILE
from depthg.run_folder import environment
from depthg.step import Step
from depthg.whole_files import write_text, write_whole

FOLDER = "nonfinite"  # of a run, for steps that are kept
KEPT_STEPS = 3  # of the skipped ones: one takes about as much room as its batch of features
MOST_IN_A_ROW = 10  # skipped iterations; more of them do not come from single photos


class FiniteGuard:
    """Decides after every backward pass whether the weights may change (``train.on_nan``).

    Args:
        run: the run folder.
        on_nan: ``stop`` or ``skip``.

    Attributes:
        skipped: iterations, counted from 1, whose losses or gradients were not finite.
    """

    def __init__(self, run: Path, on_nan: str, console: Console):
        self.run, self.on_nan, self.console = run, on_nan, console
        self.skipped: list[int] = []

    def passes(self, step: Step, iteration: int, losses: dict[str, Tensor], logged: dict[str, float | Tensor]) -> bool:
        """Whether everything is finite; False means that this iteration is to be left out.

        Raises:
            ValueError: it is not, and the run is to stop, names the iteration, the term and the images.
        """
        if not processes.any_of(not all_finite(losses, step.model)):
            return True
        values = processes.averages({"loss": losses["total"].detach(), **logged})
        term, value = first_not_finite(values, step.model)
        number = iteration + 1
        self.skipped.append(number)
        row = self.skipped[-MOST_IN_A_ROW:]
        stuck = len(row) == MOST_IN_A_ROW and row[-1] - row[0] == MOST_IN_A_ROW - 1
        skip = self.on_nan == "skip" and not stuck
        path = processes.from_main(lambda: self._keep(step, iteration, term, values, skip))
        if skip:
            self.console.print(f"iteration {number} is skipped: {term} is {value}")
            return False
        anchors = draw_batch(step.config, step.data, iteration).anchors
        raise ValueError(
            f"{term} is {value} at iteration {number}: training diverged; lower head.lr or probe.lr, or skip such "
            f"iterations with train.on_nan=skip (at most {MOST_IN_A_ROW - 1} in a row). Images of the batch: "
            f"{' '.join(map(str, anchors))}. See the step again with: python -m depthg.replay {path} "
            f"({last_checkpoint(self.run)})"
        )

    def _keep(self, step: Step, iteration: int, term: str, values: dict[str, float], skip: bool) -> Path:
        """Keeps the step: of those that are skipped the first few, and the one that the run stops at."""
        path = self.run / FOLDER / f"iteration-{iteration + 1:07d}.json"
        if not skip or len(list(path.parent.glob("iteration-*.json"))) < KEPT_STEPS:
            keep_step(path, step, iteration, term, values)
        return path


def last_checkpoint(run: Path) -> str:
    """A remark on what is left when a run stops."""
    folder = run / "checkpoints"
    return (
        f"the last checkpoint in {folder} is intact" if any(folder.glob(f"*/{FILE}")) else "there is no checkpoint yet"
    )


def all_finite(losses: dict[str, Tensor], model: torch.nn.Module) -> bool:
    """Whether all losses and all gradients are finite; one message from the device."""
    values = [loss.detach().float() for loss in losses.values()]
    values += [p.grad.abs().amax().float() for p in model.parameters() if p.grad is not None and p.grad.numel()]
    return bool(torch.stack(values).isfinite().all())


def first_not_finite(values: dict[str, float], model: torch.nn.Module) -> tuple[str, float] | None:
    """Name and value of a term of the loss, the loss, or else a gradient that is not finite; None when all are."""
    terms = {name: value for name, value in values.items() if name.startswith("loss.")}
    numbers = {**terms, "loss": values["loss"]}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and parameter.grad.numel():
            numbers[f"d_loss of {name}"] = float(parameter.grad.abs().amax())
    return next(((name, value) for name, value in numbers.items() if not np.isfinite(value)), None)


def keep_step(path: Path, step: Step, iteration: int, term: str, values: dict[str, float]) -> Path:
    """Writes what the losses of one iteration depend on: ``path`` (JSON) and tensors beside it (safetensors).

    The tensors are weights before the step, and of every view of the batch features as stored, depth, normals, labels
    and neighbours. ``python -m depthg.replay PATH`` computes the losses again, without the data set.
    """
    data, batch = step.data, draw_batch(step.config, step.data, iteration)
    views = np.unique(
        np.concatenate([part for part in (batch.anchors, batch.neighbours, batch.others) if part is not None])
    )
    arrays = {"labels": data.labels, "depth": data.depth, "normals": data.normals, "neighbours": data.neighbours}
    tensors = {name: torch.from_numpy(np.array(rows[views])) for name, rows in arrays.items() if rows is not None}
    tensors |= {"views": torch.from_numpy(views), "photos": torch.from_numpy(np.array(data.photos))}
    tensors["features"] = data.features.read(views).contiguous()
    tensors |= {f"model.{name}": value.detach().cpu().contiguous() for name, value in step.model.state_dict().items()}
    content = {
        "iteration": iteration + 1, "term": term, "values": {name: as_json(value) for name, value in values.items()},
        "anchors": batch.anchors.tolist(), "neighbours": batch.neighbours.tolist(),
        "others": None if batch.others is None else batch.others.tolist(),
        "images": len(data.features), "grid": list(data.grid), "shifts": list(step.shifts),
        "processes": processes.count(), "environment": environment(),
        "settings": OmegaConf.to_container(OmegaConf.structured(step.config)),
    }  # fmt: skip
    write_whole(path.with_suffix(".safetensors"), lambda partial: save_file(tensors, partial))
    write_text(path, json.dumps(content, indent=1, allow_nan=False))
    return path


def as_json(value: float | Tensor) -> float | str:
    """A number, or ``nan``, ``inf``, ``-inf`` as text, which JSON has no numbers for."""
    number = float(value.detach() if isinstance(value, Tensor) else value)
    return number if np.isfinite(number) else str(number)
