"""The page on which a person names clusters (Gradio)."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gradio as gr
import numpy as np

from depthg.data.errors import DataError
from depthg.inference.clear_crops import Crop
from depthg.inference.overlays import labelled_overlay
from depthg.inference.segmenter import Segmenter
from depthg.inference.survey import Survey, suggested_merges
from depthg.labelling.session import Session
from depthg.model.legend import FILE
from depthg.reporting.page import data_address

SUGGESTIONS = 6
CSS = """
.crops { display: flex; gap: 4px; overflow-x: auto; padding: 2px 0 4px }
.crops img { height: 112px; width: 112px; object-fit: cover; flex: none; margin: 0; border-radius: 4px }
.kind { font-size: 12px; opacity: .7 }
.about { display: flex; gap: 8px; align-items: center }
.about i { width: 22px; height: 22px; border-radius: 4px; flex: none }
.gradio-container { max-width: 1100px !important }
"""
HELP = """Give each cluster a name. **Clusters with one name become one class.** Void takes a cluster out: its pixels
then belong to no class. Every change is kept in `{file}` at once; predict, evaluate and reports use it."""


class LabelPage:
    """A row per cluster that occurs (largest first), suggested merges, and a tab that segments a photo.

    Args:
        session: holds and keeps the names.
        segmenter: of the run.
        survey: of the photos.
        colours: uint8 [n_clusters, 3].
    """

    def __init__(self, session: Session, segmenter: Segmenter, survey: Survey, colours: np.ndarray):
        self.session, self.segmenter, self.colours = session, segmenter, colours
        self.order = [int(i) for i in np.argsort(-survey.pixels, kind="stable") if survey.pixels[i]]
        self.suggestions = suggested_merges(segmenter.run.cluster.centroids.cpu().numpy(), survey.borders, SUGGESTIONS)
        with gr.Blocks(analytics_enabled=False, title=f"depthg: {session.run.name}") as self.blocks:
            gr.Markdown(f"# {html.escape(session.run.name)}")
            with gr.Tab("Clusters"):
                self._clusters(survey)
            with gr.Tab("A photo"):
                self._photo()
            self.blocks.load(self._state, None, self.outputs)

    def _clusters(self, survey: Survey) -> None:
        gr.Markdown(HELP.format(file=html.escape(f"{self.session.run.name}/{FILE}")))
        with gr.Row():
            self.status = gr.Markdown(elem_id="status")
            undo = gr.Button("Undo", scale=0, min_width=100)
        self.merges, self.names, self.voids = [], [], []
        if self.suggestions:
            with gr.Accordion("Suggested merges: alike, and side by side"):
                self.merges = [gr.Button(size="sm") for _ in self.suggestions]
        shares, typical, doubtful = survey.shares, survey.typical.all, survey.doubtful.all
        for number in self.order:
            with gr.Group(elem_id=f"cluster-{number}"):
                gr.HTML(_about(number, self.session.names[number], self.colours[number], shares[number]))
                with gr.Row():
                    self.names.append(gr.Textbox(show_label=False, placeholder="name", max_lines=1, scale=4))
                    self.voids.append(gr.Checkbox(label="void", scale=1, min_width=80))
                gr.HTML(_crops("typical", typical[number]) + _crops("least certain", doubtful[number]))
        act = partial(self._act, outputs=self.outputs)
        act(undo.click, self.session.undo)
        for button, pair in zip(self.merges, self.suggestions, strict=True):
            act(button.click, partial(self.session.merge, pair.one, pair.other))
        for number, name, void in zip(self.order, self.names, self.voids, strict=True):
            for event in (name.submit, name.blur):
                act(event, partial(self._rename, number), name)
            act(void.input, partial(self.session.make_void, number), void)

    def _photo(self) -> None:
        gr.Markdown("Segments a photo under the names given so far. It stays here, and is removed when this ends.")
        source = gr.File(label="photo", file_types=["image"], type="filepath")
        self.segmented = gr.Image(
            label="segments", interactive=False, format="jpeg", buttons=["download", "fullscreen"]
        )
        source.upload(self._segment, source, self.segmented)

    @property
    def outputs(self) -> list[Any]:
        """What a change may alter: the line of the state, suggestions, names and void marks."""
        return [self.status, *self.merges, *self.names, *self.voids]

    def _act(self, event: Callable, change: Callable, given: Any = None, *, outputs: Sequence[Any]) -> None:
        """Calls ``change`` on an event, and shows the state after it, or why it was refused."""

        def changed(*values):
            try:
                change(*values)
            except (ValueError, OSError) as error:
                gr.Warning(html.escape(str(error)))
            return self._state()

        # one after the other: a click on Undo also leaves the field that was being edited
        event(changed, given, outputs, show_progress="hidden", concurrency_id="names", concurrency_limit=1)

    def _rename(self, number: int, text: str) -> None:
        if text.strip() != (self.session.given.get(number) or ""):  # leaving a field is no change
            self.session.rename(number, text)

    def _state(self) -> list[Any]:
        """Values of ``outputs``."""
        legend, given = self.session.legend, self.session.given
        void = int((legend.table < 0).sum())
        counts = f"**{len(legend.names)} classes** of {len(legend.table)} clusters" + f", {void} void" * bool(void)
        still = self.session.open_suggestions(self.suggestions)
        called = [f"{given[i]} ({i})" if given.get(i) else name for i, name in enumerate(self.session.names)]
        merges = [
            gr.Button(
                value=f"{called[pair.one]} + {called[pair.other]} "
                f"(cosine {pair.cosine:.2f}, {pair.border:.0%} of the border)",
                visible=pair in still,
            )
            for pair in self.suggestions
        ]
        names = [given.get(number) or "" for number in self.order]
        voids = [number in given and given[number] is None for number in self.order]
        return [counts, *merges, *names, *voids]

    def _segment(self, path: str) -> np.ndarray:
        """The photo under the colours and names of its classes, uint8 [H, W, 3]."""
        legend = self.session.legend
        try:
            photo = self.segmenter.prepare(path)
        except DataError as error:
            raise gr.Error(html.escape(str(error).replace(str(path), "the photo"))) from error
        (maps,) = self.segmenter.maps([photo])
        ids = self.segmenter.ids(photo, maps)
        table = np.where(legend.table < 0, len(legend.names), legend.table)
        names = [*legend.names, "void"]
        colours = np.vstack([self.colours[legend.first], [[0, 0, 0]]]).astype(np.uint8)
        return np.asarray(labelled_overlay(photo.image, table[ids].astype(np.uint16), colours, names))


def _about(number: int, name: str, colour: np.ndarray, share: float) -> str:
    own = f"cluster {number}" if name == f"cluster {number}" else f"cluster {number}, as {html.escape(name)}"
    return f'<div class="about"><i style="background:#{bytes(colour).hex()}"></i><b>{own}</b> {100 * share:.1f} %</div>'


def _crops(kind: str, crops: Sequence[Crop]) -> str:
    image = '<img src="{}" alt="{name}" title="{name}">'
    images = "".join(image.format(data_address(crop.jpeg, "jpeg"), name=html.escape(crop.photo)) for crop in crops)
    return f'<div class="kind">{kind}</div><div class="crops">{images}</div>'
