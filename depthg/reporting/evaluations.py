"""Files of an evaluation: scores, confusion matrices, the list in ``metrics.json`` and the run's report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from depthg.evaluation.results import Evaluation, note_in_metrics, write_evaluation
from depthg.model.run_folder import environment
from depthg.reporting.figures import confusion_figure, save_figure
from depthg.reporting.report import write_report


def write_evaluations(folder: Path, found: Sequence[Evaluation], seconds: float, run: Path | None) -> list[Path]:
    """``NAME.json`` of every evaluation and, with labels, ``NAME.png``, the confusion matrix of the clusters.

    Args:
        folder: where they go.
        seconds: that the evaluations took.
        run: the run whose ``metrics.json`` and report name them; None leaves it alone.

    Returns:
        The JSON files.
    """
    written = {}
    for evaluation in found:
        if evaluation.results:
            confusion = np.array(evaluation.results["cluster"]["confusion"])
            save_figure(confusion_figure(confusion, evaluation.classes), folder / f"{evaluation.name}.png")
        written[write_evaluation(folder, evaluation, environment(), seconds)] = evaluation
    if run is not None:
        note_in_metrics(run, written)
        write_report(run)
    return list(written)
