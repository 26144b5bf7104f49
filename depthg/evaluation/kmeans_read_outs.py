"""k-means read-outs of training codes and raw features: baselines, or another number of clusters."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from depthg.evaluation.one_pass import ReadOut
from depthg.features.preparation import Preparation
from depthg.features.reading import StoredFeatures, StreamedFeatures
from depthg.features.transform import DTYPES
from depthg.model.clustering import cosine_kmeans
from depthg.model.codes import SAMPLE_IMAGES, sample_rows
from depthg.model.loaded_run import LoadedRun
from depthg.runtime.device import to_device
from depthg.runtime.progress import ProgressBar
from depthg.storage.cache import cache_key, is_whole

MOST_CENTROIDS = 500  # maximum over all restarts together; up to 50 clusters have ten restarts, as in training


def kmeans_read_outs(
    run: LoadedRun, preparation: Preparation, clusters: int | None, *, baselines: bool
) -> dict[str, ReadOut]:
    """k-means read-outs fitted on ``val.kmeans_samples`` training vectors, as at the end of training.

    Args:
        run: the trained run.
        preparation: its data set.
        clusters: None: baselines with as many clusters as the run. A number: ``cluster`` is a k-means of the codes with
            this many clusters, replacing the learned probe; the baseline on features has as many.
        baselines: True to fit the baselines.

    Raises:
        ValueError: fewer vectors than clusters.
    """
    if clusters is None and not baselines:
        return {}
    settings, k = run.config.val, clusters or run.n_clusters
    rows = training_rows(run, preparation, settings.kmeans_samples, run.config.seed)
    rows = to_device(rows, run.device)
    codes = run.codes(rows[None])[0]
    fitted = {"cluster" if clusters else "kmeans_codes": ReadOut(_fit(codes, k, run))}
    if baselines:
        fitted["kmeans_features"] = ReadOut(_fit(rows, k, run), on="features")
    return fitted


def _fit(vectors: Tensor, k: int, run: LoadedRun) -> Tensor:
    restarts = min(10, max(1, MOST_CENTROIDS // k))
    return cosine_kmeans(vectors, k, seed=run.config.seed, n_init=restarts).to(run.device)


def training_rows(run: LoadedRun, preparation: Preparation, count: int, seed: int) -> Tensor:  # [rows, C]
    """The feature vectors that ``model.codes.sample_rows`` draws at the end of training.

    They come from the feature cache of the training if it still exists, else from photos through the backbone.
    """
    views, dtype = preparation.train_views, DTYPES[run.config.features.dtype]
    folder = preparation.root / "features" / cache_key(preparation.feature_settings)
    if run.header.get("features") == folder.name and is_whole(folder):
        stored = StoredFeatures(folder / "features.npy", dtype)
        stored.valid = None if preparation.valid is None else preparation.valid[0]
        return sample_rows(stored, count, seed)
    h, w = preparation.grid(views)
    with ProgressBar("features for k-means", min(len(views), SAMPLE_IMAGES)) as bar:

        def maps(numbers: Sequence[int] | np.ndarray, batch: int) -> Iterator[Tensor]:
            for part in preparation.maps(views)(numbers, batch):
                yield part
                bar.advance(len(part))

        transform = copy.deepcopy(run.transform).to(preparation.device)
        shape = (len(views), h * w, transform.channels)
        streamed = StreamedFeatures(shape, dtype, transform, maps, run.config.backbone.batch_size)
        streamed.valid = None if preparation.valid is None else preparation.valid[0]
        return sample_rows(streamed, count, seed)
