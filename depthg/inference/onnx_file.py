"""ONNX files of trained runs: written whole, with what the ids mean, after a comparison with the segmenter."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from depthg import __version__
from depthg.data.errors import show
from depthg.inference.onnx_graph import OnnxGraph, any_size
from depthg.inference.segmenter import Segmenter
from depthg.storage.whole_files import write_whole

KEY = "depthg"  # of the metadata
OPSET = 18
LEAST = 0.999  # share of the pixels whose ids must be the segmenter's
SIZES = ((3, 4), (5, 2))  # of generated photos, in multiples, beside that of the run's evaluation
NEEDS = ("onnx", "onnxscript")
AXES = {0: "batch", 2: "height", 3: "width"}


class Written(NamedTuple):
    """A file: its metadata, and the share of pixels with the segmenter's ids (None: not compared)."""

    metadata: dict[str, Any]
    equal: float | None


def check_packages() -> None:
    """Raises ImportError, which names the extra, without the packages that exports need."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"an ONNX file needs {' and '.join(missing)}: python -m pip install 'depthg[onnx]'")


def check_target(path: Path, overwrite: bool = False) -> None:
    """Raises OSError if the file cannot be written because something is there."""
    if path.is_dir():
        raise IsADirectoryError(f"{show(path)} is a folder; name a file")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{show(path)} exists; pass --overwrite to replace it")


def write_onnx(segmenter: Segmenter, path: Path, *, scores: bool = False, photos: Iterable = ()) -> Written:
    """Writes the graph of :class:`OnnxGraph` to one file, whole or not at all.

    With onnxruntime installed it is first run there, on photos of several sizes, and compared with the segmenter.

    Args:
        segmenter: of a run on the CPU; its legend is applied.
        path: an existing file is replaced.
        scores: the graph also gives the scores.
        photos: what ``Segmenter.predict`` takes; compared beside generated photos, scaled as ``predict`` scales them.

    Raises:
        ImportError: onnx or onnxscript is missing.
        ValueError: the backbone cannot be exported, or fewer than 99.9% of the ids are those of the segmenter.
        OSError: a photo cannot be read, or the file cannot be written.
    """
    check_packages()
    metadata = describe(segmenter, scores)
    content = serialised(segmenter, metadata, scores)
    equal = None
    if importlib.util.find_spec("onnxruntime") is not None:
        equal = share_equal(segmenter, content, [*made_up(segmenter), *scaled_photos(segmenter, photos)])
        if not equal >= LEAST:
            raise ValueError(
                f"only {equal:.2%} of the ids of the ONNX graph are those of the run (at least {LEAST:.1%} must be): "
                f"{segmenter.run.config.backbone.name} cannot be exported; {show(path)} is not written"
            )
    write_whole(path, lambda partial: partial.write_bytes(content))
    return Written(metadata, equal)


def describe(segmenter: Segmenter, scores: bool = False) -> dict[str, Any]:
    """The metadata: how to prepare images for the graph, and what its ids mean. No path of this machine is in it."""
    run = segmenter.run
    return {
        "depthg": __version__, "run": run.path.resolve().name, "checkpoint": run.checkpoint,
        "iteration": run.header.get("iteration"), "backbone": run.config.backbone.name.rpartition("/")[2],
        "input": "uint8 [batch, 3, height, width], RGB, 0 to 255",
        "outputs": ["ids", "scores"] if scores else ["ids"],
        "multiple": run.backbone.multiple, "eval_size": [int(side) for side in run.config.data.eval_size],
        "interpolation": run.config.data.interpolation, "legend": segmenter.legend is not None,
        "names": list(segmenter.names), "palette": segmenter.colours.tolist(),
    }  # fmt: skip


def serialised(segmenter: Segmenter, metadata: dict[str, Any], scores: bool) -> bytes:
    """The ONNX file as bytes, with the metadata as JSON under the key ``depthg``."""
    import onnx

    graph, side = OnnxGraph(segmenter, scores).eval(), segmenter.run.backbone.multiple
    example = torch.zeros(2, 3, 3 * side, 4 * side, dtype=torch.uint8)
    try:
        with _quiet(), any_size(segmenter.run.backbone.body), torch.no_grad():
            program = torch.onnx.export(
                graph, (example,), dynamo=True, opset_version=OPSET, verbose=False, external_data=False,
                input_names=["images"], output_names=metadata["outputs"], dynamic_shapes={"images": AXES},
            )  # fmt: skip
        assert program is not None
        model = program.model_proto
        sides = model.graph.input[0].type.tensor_type.shape.dim
        if [sides[axis].dim_param for axis in AXES] != [*AXES.values()]:
            raise ValueError("its code holds the size of the images fixed")
    except (torch.onnx.errors.OnnxExporterError, ValueError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        name = segmenter.run.config.backbone.name
        raise ValueError(f"{name} cannot be exported for images of any size: {reason}") from error
    _strip(model)
    onnx.helper.set_model_props(model, {KEY: json.dumps(metadata, ensure_ascii=False)})
    return model.SerializeToString()


def _strip(model: Any) -> None:
    """Removes what the exporter notes about the code that it came from, with the paths of this machine."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    assert not model.functions


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks about packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def made_up(segmenter: Segmenter) -> Iterator[np.ndarray]:  # uint8 [H, W, 3]
    """Photos of smooth colours, two of every size, at sides that the graph takes."""
    multiple, rng = segmenter.run.backbone.multiple, np.random.default_rng(0)
    height, width = (max(1, round(side / multiple)) for side in segmenter.run.config.data.eval_size)
    for rows, columns in (*SIZES, (height, width)):
        for _ in range(2):
            coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
            yield np.asarray(coarse.resize((columns * multiple, rows * multiple), Image.Resampling.BICUBIC))


def scaled_photos(segmenter: Segmenter, photos: Iterable) -> Iterator[np.ndarray]:  # uint8 [H, W, 3]
    """Photos as the segmenter scales them for the network; a panorama without its windows."""
    multiple = segmenter.run.backbone.multiple
    for photo in photos:
        pixels = segmenter.prepare(photo).pixels
        height, width = (side - side % multiple for side in pixels.shape[:2])
        yield pixels[:height, :width]


def share_equal(segmenter: Segmenter, content: bytes, photos: Iterable[np.ndarray]) -> float:
    """Share of the pixels of photos, at sides that the graph takes, with equal ids in onnxruntime and in torch.

    Photos of one size that follow each other go through the graph together, up to the segmenter's batch.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    equal = total = 0
    for group in _groups(photos, segmenter.batch):
        side, legend = max(group[0].shape[:2]), segmenter.legend is not None
        whole = Segmenter(segmenter.run, side, legend=legend)  # one window: no pixel is scaled or blended
        found = session.run(["ids"], {"images": np.stack(group).transpose(0, 3, 1, 2)})[0]
        for ids, photo in zip(found, group, strict=True):
            equal, total = equal + int((ids == whole.predict(photo).ids).sum()), total + ids.size
    return equal / total


def _groups(photos: Iterable[np.ndarray], most: int) -> Iterator[list[np.ndarray]]:
    group: list[np.ndarray] = []
    for photo in photos:
        if group and (photo.shape != group[0].shape or len(group) == most):
            yield group
            group = []
        group.append(photo)
    if group:
        yield group
