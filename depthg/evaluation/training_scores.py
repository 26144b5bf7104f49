"""Scores of a model during training, on the cached features and labels of the evaluation split."""

from __future__ import annotations

from functools import cached_property

import torch

from depthg.evaluation.scoring import confusions, summarize
from depthg.model.codes import sample_rows
from depthg.runtime.device import to_device
from depthg.training.trainer import Trainer


class TrainingScores:
    """Metrics of a trainer's current model, computed on request."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def probes(self) -> dict:
        """The learned read-outs, in the form that ``scoring.confusions`` takes."""
        model = self.trainer.model
        found = {"cluster": (True, model.cluster)}
        return found | ({"linear": (True, model.linear)} if model.linear is not None else {})

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
