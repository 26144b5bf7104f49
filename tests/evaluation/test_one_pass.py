"""Counts of the pass against codes that are averaged, up-sampled and compared as the protocol says."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from miniature import settings, write_camvid
from torch.nn import functional as F

from depthg.data.transforms import to_float
from depthg.evaluation.frames import FULL
from depthg.evaluation.metrics import confusion_matrix
from depthg.evaluation.one_pass import FLIP, FLIP_CRF, PLAIN, EvaluationPass, Variant, probe_read_outs
from depthg.features.preparation import Preparation
from depthg.inference.crf import crf_ids, crf_ids_of_images
from depthg.inference.crf_image import crf_image
from depthg.inference.segmenter import Segmenter
from depthg.kernels import dense_crf
from depthg.model.loaded_run import load_run
from depthg.train import train

SIZE = (64, 64)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pass")
    config = settings(write_camvid(folder / "camvid", n_val=5), "name=run", "val.panels=0", "backbone.standardize=true")
    train(config)
    return load_run(folder / "runs" / "run"), Preparation(config, torch.device("cpu")).dataset.val


def photo(split, number):
    """A 64 x 64 photo of the miniature is its own crop: image in [0, 1] and label."""
    return to_float(torch.from_numpy(split.image(number).transpose(2, 0, 1).copy())[None]), split.label(number)


def log_probabilities(run, image, flip):
    """Both probes by the book: codes averaged, up-sampled, then cosine or linear scores at every pixel."""
    codes = run.codes(run.features(image)).transpose(1, 2).unflatten(2, (8, 8))
    if flip:
        mirrored = run.codes(run.features(image.flip(3))).transpose(1, 2).unflatten(2, (8, 8))
        codes = (codes + mirrored.flip(3)) / 2
    codes = F.interpolate(codes, SIZE, mode="bilinear", align_corners=False)
    centroids = F.normalize(run.cluster.centroids, dim=1)
    cosine = torch.einsum("nk,bkhw->bnhw", centroids, F.normalize(codes, dim=1))
    found = {"cluster": (2 * cosine).log_softmax(1)[0]}
    for name, probe in (("linear", run.fitted_linear), ("linear_joint", run.linear)):
        scores = torch.einsum("nk,bkhw->bnhw", probe.weight, codes) + probe.bias.view(-1, 1, 1)
        found[name] = scores.log_softmax(1)[0]
    return found


def test_plain_counts_are_those_of_the_training(trained):
    run, split = trained
    counts = EvaluationPass(run, probe_read_outs(run), [PLAIN], 11).over(split, [SIZE])
    stored = json.loads((run.path / "metrics.json").read_text())
    matched = np.zeros((11, 12), np.int64)
    np.add.at(matched.T, stored["assignment"]["cluster"], counts[SIZE, PLAIN, "cluster"].sum(0).T)
    np.testing.assert_array_equal(matched, stored["confusion"])


@pytest.mark.parametrize("variant", [PLAIN, FLIP])
def test_every_image_is_counted_as_the_protocol_says(trained, variant):
    run, split = trained
    counts = EvaluationPass(run, probe_read_outs(run), [variant], 11).over(split, [SIZE])
    differ = 0
    for number in range(len(split)):
        image, label = photo(split, number)
        for name, values in log_probabilities(run, image, variant.flip).items():
            expected = confusion_matrix(values.argmax(0).numpy(), label, 11, 11)
            differ += np.abs(counts[SIZE, variant, name][number] - expected).sum()
    assert differ <= 4, "pixels whose two best classes tie in the last bit"


def test_flip_averages_the_codes_and_not_the_predictions(trained):
    run, split = trained
    counts = EvaluationPass(run, probe_read_outs(run), [PLAIN, FLIP], 11).over(split, [SIZE])
    assert (counts[SIZE, PLAIN, "cluster"] != counts[SIZE, FLIP, "cluster"]).any()


def test_crf_refines_the_probabilities_of_both_probes(trained):
    run, split = trained
    counts = EvaluationPass(run, probe_read_outs(run), [FLIP_CRF, Variant(crf=True)], 11).over(split, [SIZE])
    for variant, number in ((FLIP_CRF, 0), (Variant(crf=True), 4)):
        image, label = photo(split, number)
        terms = log_probabilities(run, image, variant.flip)
        marginals = dense_crf([-values for values in terms.values()], split.image(number))
        for name, q in zip(terms, marginals, strict=True):
            expected = confusion_matrix(q.argmax(0), label, 11, 11)
            assert np.abs(counts[SIZE, variant, name][number] - expected).sum() <= 4


@pytest.mark.parametrize("kind", ["photo", "released"])
def test_the_crf_compares_the_bytes_that_the_settings_name(trained, kind, monkeypatch):
    run, split = trained
    run = dataclasses.replace(run, config=copy.deepcopy(run.config))
    run.config.val.crf_image, seen = kind, []

    def refine(jobs, threads):
        seen.extend(image for image, _ in jobs)
        return crf_ids_of_images(jobs, threads)

    monkeypatch.setattr("depthg.evaluation.one_pass.crf_ids_of_images", refine)
    EvaluationPass(run, probe_read_outs(run), [FLIP_CRF], 11).over(split, [SIZE])
    for number, image in enumerate(seen):
        own = split.image(number)
        assert np.array_equal(image, crf_image(own, kind)) and (np.array_equal(image, own) == (kind == "photo"))
    segmenter, given = Segmenter(run), []

    def refine_as_told(image, maps):
        given.append(image)
        return crf_ids(image, maps)

    monkeypatch.setattr("depthg.inference.segmenter.crf_ids", refine_as_told)
    prepared = segmenter.prepare(split.image(0))
    segmenter.refined(prepared, segmenter.maps([prepared])[0])
    assert np.array_equal(given[0], seen[0]) and len(seen) == len(split)


def test_one_pass_for_all_gives_what_single_passes_give_with_two_forwards(trained, monkeypatch):
    run, split = trained
    read_outs, variants, sizes = probe_read_outs(run), (PLAIN, FLIP, FLIP_CRF), (SIZE, FULL)
    single = {}
    for size in sizes:
        for variant in variants:
            single |= EvaluationPass(run, read_outs, [variant], 11).over(split, [size])
    seen, features = [], type(run).features
    monkeypatch.setattr(type(run), "features", lambda self, images: seen.append(len(images)) or features(self, images))
    together = EvaluationPass(run, read_outs, variants, 11).over(split, sizes)
    assert sum(seen) == 2 * len(sizes) * len(split), "each frame and its mirror image once"
    assert together.keys() == single.keys() and len(together) == 18
    for key, counts in together.items():
        np.testing.assert_array_equal(counts, single[key])


def test_without_labels_pixels_of_every_cluster_are_counted(trained):
    run, split = trained
    counts = EvaluationPass(run, {"cluster": probe_read_outs(run)["cluster"]}, [PLAIN], 0).over(split, [FULL])
    table = counts[FULL, PLAIN, "cluster"]
    assert table.shape == (5, 1, 11) and (table.sum((1, 2)) == 64 * 64).all()
