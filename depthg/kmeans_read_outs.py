"""k-means of training codes and of raw features, as baselines and to cluster codes anew with another number."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch
from torch import Tensor

from depthg.cache import cache_key, is_whole
from depthg.clustering import cosine_kmeans
from depthg.data.transforms import to_float
from depthg.evaluation_pass import ReadOut
from depthg.features import DTYPES, StoredFeatures
from depthg.loaded_run import LoadedRun
from depthg.loading import load_views
from depthg.prepare import Preparation
from depthg.progress import StageBar

MOST_VIEWS = 2000  # training views that vectors are drawn from, evenly spread
MOST_CENTROIDS = 500  # of all restarts together; up to 50 clusters have ten restarts, as in training


def kmeans_read_outs(
    run: LoadedRun, preparation: Preparation, clusters: int | None, *, baselines: bool
) -> dict[str, ReadOut]:
    """Clusterings of training vectors (``val.kmeans_samples`` of them), fitted as at the end of training.

    Args:
        run: the trained run.
        preparation: its data set.
        clusters: None: baselines with as many clusters as the run has. A number: ``cluster`` is a k-means of the codes
            with so many clusters, in the place of the learned probe, and the baseline on features has as many.
        baselines: whether there are baselines.

    Raises:
        ValueError: fewer vectors than clusters.
    """
    if clusters is None and not baselines:
        return {}
    settings, k = run.config.val, clusters or run.n_clusters
    rows = training_rows(run, preparation, settings.kmeans_samples, run.config.seed)
    codes = run.codes(rows[None].to(run.device))[0]
    fitted = {"cluster" if clusters else "kmeans_codes": ReadOut(_fit(codes, k, run))}
    if baselines:
        fitted["kmeans_features"] = ReadOut(_fit(rows, k, run), on="features")
    return fitted


def _fit(vectors: Tensor, k: int, run: LoadedRun) -> Tensor:
    restarts = min(10, max(1, MOST_CENTROIDS // k))
    return cosine_kmeans(vectors, k, seed=run.config.seed, n_init=restarts).to(run.device)


def training_rows(run: LoadedRun, preparation: Preparation, count: int, seed: int) -> Tensor:  # [rows, C]
    """Random feature vectors, evenly many from every training view: those of ``scoring.sample_rows`` up to
    ``MOST_VIEWS`` views. They come from the features kept by the training, else the backbone runs."""
    views = preparation.train_views
    h, w = preparation.grid(views)
    numbers = np.arange(min(len(views), MOST_VIEWS)) * len(views) // min(len(views), MOST_VIEWS)
    each = min(h * w, max(1, -(-count // len(numbers))))
    rng, dtype = np.random.default_rng(seed), DTYPES[run.config.features.dtype]
    cells = [np.sort(rng.choice(h * w, each, replace=False)) for _ in numbers]
    folder = preparation.root / "features" / cache_key(preparation.feature_settings)
    if run.header.get("features") == folder.name and is_whole(folder):
        kept = StoredFeatures(folder / "features.npy", dtype)
        found = np.concatenate([kept[view, own] for view, own in zip(numbers, cells, strict=True)])
        return torch.from_numpy(found).float()
    rows: list[Tensor] = []
    loaded, size = load_views(views, numbers, "image"), run.config.backbone.batch_size
    with StageBar("features for k-means", len(numbers)) as bar:
        while batch := [view.image for view in islice(loaded, size)]:
            for maps in run.features(to_float(torch.stack(batch).to(run.device))).cpu():
                rows.append(maps[torch.from_numpy(cells[len(rows)])])
                bar.advance()
    return torch.cat(rows)
