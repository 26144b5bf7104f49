"""Scores of a model during training, on the cached features and labels of the evaluation split."""

from __future__ import annotations

import time
from functools import cached_property, partial

import torch
from torch.nn import functional

from depthg.evaluation.scoring import confusions, summarize
from depthg.model.codes import labelled_codes, sample_rows
from depthg.model.linear_fit import LinearFit, fit_linear
from depthg.runtime import processes
from depthg.runtime.device import to_device
from depthg.runtime.seeds import seed_of
from depthg.training.trainer import Trainer


class TrainingScores:
    """Metrics of a trainer's current model, computed on request."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.fitted: LinearFit | None = None  # on the device; see `fit_linear_probe`

    def probes(self) -> dict:
        """The learned read-outs, in the form that ``scoring.confusions`` takes."""
        model = self.trainer.model
        found: dict = {"cluster": (True, model.cluster)}
        if self.fitted is not None:
            found["linear"] = (True, partial(functional.linear, weight=self.fitted.weight, bias=self.fitted.bias))
        return found | ({"linear_joint": (True, model.linear)} if model.linear is not None else {})

    def fit_linear_probe(self) -> dict:
        """Fits the linear probe to convergence on codes of the trainer's current head; the first process, for all.

        Returns:
            What a checkpoint holds of the fit beside its weights: cells, iterations and gradient; empty without a
            labelled training cell, and nothing is fitted then.
        """
        trainer = self.trainer
        if trainer.model.linear is None:
            return {}
        found = processes.from_main(self._fit)
        if found is None:
            return {}
        fit, about = found
        weight, bias = (to_device(value, trainer.device) for value in fit[:2])
        self.fitted = fit._replace(weight=weight, bias=bias)
        return about

    def _fit(self) -> tuple[LinearFit, dict] | None:
        trainer, started = self.trainer, time.perf_counter()
        data, n_classes = trainer.data, len(trainer.data.dataset.classes)
        seed = seed_of(trainer.config.seed, "linear fit")
        codes, classes = labelled_codes(trainer.model.head, data.features, data.labels, data.grid, seed, trainer.device)
        if not len(codes):
            return None
        fit = fit_linear(codes, classes, n_classes)
        seconds = time.perf_counter() - started
        trainer.console.print(
            f"linear probe fitted to {len(codes):,} cells: {fit.iterations} iterations, gradient {fit.gradient:.0e}, "
            f"{seconds:.1f} s",
            highlight=False,
        )
        return fit, {"cells": len(codes), "iterations": fit.iterations, "gradient": fit.gradient}

    @cached_property
    def feature_centroids(self) -> torch.Tensor:
        """k-means centroids of the raw features, computed once, since features never change."""
        trainer = self.trainer
        features, count = trainer.data.features, trainer.config.val.kmeans_samples
        return trainer.kmeans(lambda: to_device(sample_rows(features, count, trainer.config.seed), trainer.device))

    def all(self) -> tuple[dict, dict, dict]:
        """Metrics, assignments and confusion matrices; empty without labels."""
        trainer = self.trainer
        data, val = trainer.data, trainer.config.val
        classes = data.dataset.classes
        if data.evaluation.labels is None:
            return {}, {}, {}
        of_codes, of_features = trainer.code_centroids(), self.feature_centroids
        read_outs = self.probes() | {
            "kmeans_codes": (True, lambda x: x @ of_codes.T),
            "kmeans_features": (False, lambda x: x @ of_features.T),
        }
        counts = confusions(data.evaluation, trainer.model.head, read_outs, len(classes), trainer.device)
        return *summarize(counts, classes, val.matching, val.count), counts

    def metrics(self) -> dict:
        """Flat metrics in percent; empty without labels."""
        return self.all()[0]
