"""Detects NaN or infinite losses and gradients before they reach the weights, reports them, and keeps the step.

On a GPU the fused optimisers read a flag on the device to skip a step, and the host reads the flag one step later.
Otherwise the host would wait for the device in every step, and the device for the host.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from rich.console import Console
from torch import Tensor

from depthg.model.checkpoints import FILE
from depthg.model.run_folder import environment
from depthg.runtime import processes
from depthg.runtime.device import Later
from depthg.storage.whole_files import write_tensors, write_text
from depthg.training.batches import draw_batch
from depthg.training.step import Step

FOLDER = "nonfinite"  # folder of kept steps in the run folder
KEPT_STEPS = 3  # maximum number of skipped steps to keep: each takes about the size of its batch of features
MOST_IN_A_ROW = 10  # consecutive non-finite iterations that stop the run: single photos do not cause that


@dataclass(frozen=True)
class Found:
    """Record of a step until it is known whether the step was finite."""

    step: Step
    iteration: int
    values: dict[str, float | Tensor]  # logged values, and "loss"
    gradients: dict[str, Tensor]  # largest entry of every parameter's gradient, 0-dim
    bad: Later  # positive if something is not finite


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
        self._last: Found | None = None

    def passes(
        self, step: Step, iteration: int, losses: dict[str, Tensor], logged: dict[str, float | Tensor],
        optimizers: Iterable[torch.optim.Optimizer],
    ) -> bool:  # fmt: skip
        """True if everything is finite; False if this iteration must be skipped.

        On a GPU the result is always True: the fused ``optimizers`` skip a non-finite step by themselves, and
        :meth:`settle`, called at the start of the next call, reports it.

        Raises:
            ValueError: a value is not finite and the run must stop; names the iteration, the term and the images.
        """
        self.settle()
        gradients = largest_gradients(step.model)
        bad = processes.total(not_finite(losses, gradients))
        values = {"loss": losses["total"].detach(), **logged}
        self._last = Found(step, iteration, values, gradients, Later(bad))
        if not bad.is_cuda:
            return self.settle()
        for optimizer in optimizers:
            optimizer.found_inf = bad.clamp(max=1)  # type: ignore[attr-defined]
        return True

    def settle(self) -> bool:
        """True if the last step was finite. The host waits for its losses and gradients, but not for later work.

        Raises:
            ValueError: as :meth:`passes`.
        """
        last, self._last = self._last, None
        return last is None or not bool(last.bad.values()) or self._left_out(last)

    def _left_out(self, last: Found) -> bool:
        """Records a non-finite step and returns False, or raises ValueError to stop the run."""
        step, iteration, values = last.step, last.iteration, processes.averages(last.values)
        term, value = first_not_finite(values, last.gradients)
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
        """Keeps the step if it stops the run or is one of the first ``KEPT_STEPS``; returns its path."""
        path = self.run / FOLDER / f"iteration-{iteration + 1:07d}.json"
        if not skip or len(list(path.parent.glob("iteration-*.json"))) < KEPT_STEPS:
            keep_step(path, step, iteration, term, values)
        return path


def last_checkpoint(run: Path) -> str:
    """A phrase for error messages: whether a stopped run has a checkpoint."""
    folder = run / "checkpoints"
    return (
        f"the last checkpoint in {folder} is intact" if any(folder.glob(f"*/{FILE}")) else "there is no checkpoint yet"
    )


def largest_gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """The largest absolute entry of every parameter's gradient, 0-dim float32 on its device; NaN if an entry is NaN."""
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.numel()}
    return {name: grad.abs().amax().float() for name, grad in grads.items()}


def not_finite(losses: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Tensor:  # 0-dim float32
    """1 if any loss or gradient is not finite, else 0; stays on their device."""
    values = [*(loss.detach().float() for loss in losses.values()), *gradients.values()]
    return 1 - torch.stack(values).isfinite().all().float()


def first_not_finite(values: Mapping[str, float], gradients: Mapping[str, Tensor]) -> tuple[str, float] | None:
    """Name and value of the first non-finite loss term, loss or gradient, in this order; None if all are finite."""
    terms = {name: value for name, value in values.items() if name.startswith("loss.")}
    numbers = {**terms, "loss": values["loss"]}
    numbers |= {f"d_loss of {name}": float(largest) for name, largest in gradients.items()}
    return next(((name, value) for name, value in numbers.items() if not np.isfinite(value)), None)


def keep_step(path: Path, step: Step, iteration: int, term: str, values: dict[str, float]) -> Path:
    """Writes everything that the losses of one iteration depend on: ``path`` (JSON) and a safetensors file beside it.

    The tensors are the weights before the step and, for every view of the batch, stored features, depth, normals,
    labels and neighbours. ``python -m depthg.replay PATH`` recomputes the losses without the data set.
    """
    data, batch = step.data, draw_batch(step.config, step.data, iteration)
    views = np.unique(
        np.concatenate([part for part in (batch.anchors, batch.neighbours, batch.others) if part is not None])
    )
    names = ("labels", "depth", "depth_grids", "normals", "unknown", "neighbours")
    arrays = {name: getattr(data, name) for name in names}
    tensors = {name: torch.from_numpy(np.array(rows[views])) for name, rows in arrays.items() if rows is not None}
    tensors |= {"views": torch.from_numpy(views), "photos": torch.from_numpy(np.array(data.photos))}
    tensors["features"] = data.features.read(views).contiguous()
    tensors |= {} if data.features.valid is None else {"valid": torch.from_numpy(np.array(data.features.valid[views]))}
    tensors |= {f"model.{name}": value.detach().cpu().contiguous() for name, value in step.model.state_dict().items()}
    content = {
        "iteration": iteration + 1, "term": term, "values": {name: as_json(value) for name, value in values.items()},
        "anchors": batch.anchors.tolist(), "neighbours": batch.neighbours.tolist(),
        "others": None if batch.others is None else batch.others.tolist(),
        "images": len(data.features), "grid": list(data.grid), "shifts": list(step.shifts),
        "processes": processes.count(), "environment": environment(),
        "settings": OmegaConf.to_container(OmegaConf.structured(step.config)),
    }  # fmt: skip
    write_tensors(path.with_suffix(".safetensors"), tensors)
    write_text(path, json.dumps(content, indent=1, allow_nan=False))
    return path


def as_json(value: float | Tensor) -> float | str:
    """A number, or the text ``nan``, ``inf`` or ``-inf``, which JSON cannot express as numbers."""
    number = float(value.detach() if isinstance(value, Tensor) else value)
    return number if np.isfinite(number) else str(number)
