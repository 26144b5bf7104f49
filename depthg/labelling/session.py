"""Names as they are given one after the other: merged, made void, taken back, and kept in the run's legend."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from depthg.inference.survey import Suggestion
from depthg.model.legend import FILE, Legend, legend_of, write_legend


class Session:
    """The names of a run's clusters while a person gives them. Every change is written to ``RUN/legend.yaml``.

    Args:
        run: the run folder.
        names: the name that the run gives to each cluster.
        checksum: of the clusters (``depthg.model.legend.checksum_of``).
        legend: what the folder's legend says already.
    """

    def __init__(self, run: Path, names: Sequence[str], checksum: str, legend: Legend | None = None):
        self.run, self.names, self.checksum = run, tuple(names), checksum
        self.given: dict[int, str | None] = {}
        self.colours = dict(legend.colours) if legend else {}
        if legend is not None:
            for number, index in enumerate(legend.table.tolist()):
                name = legend.names[index] if index >= 0 else None
                if name != self.names[number] or (legend.table == index).sum() > 1:
                    self.given[number] = name
        self._past: list[dict[int, str | None]] = []
        self._lock = threading.Lock()

    @property
    def legend(self) -> Legend:
        """What the names mean."""
        colours = {name: colour for name, colour in self.colours.items() if name in self.given.values()}
        return legend_of(self.given, self.names, colours)

    def rename(self, number: int, name: str) -> None:
        """Gives a cluster a name; the name that another has merges them, an empty one takes the name away."""
        name = name.strip()
        self._change({number: name} if name else {}, without=number if not name else None)

    def make_void(self, number: int, void: bool = True) -> None:
        """Takes a cluster out: its pixels belong to no class; or takes it back in, without a name."""
        self._change({number: None} if void else {}, without=None if void else number)

    def merge(self, one: int, other: int) -> None:
        """Gives two clusters, and all that have the name of the second, one name: the first's, or else the second's."""
        own, others = self.given.get(one), self.given.get(other)
        name = own or others or self.names[one]
        same = [number for number, given in self.given.items() if others and given == others]
        self._change({number: name for number in (one, other, *same)})

    def undo(self) -> bool:
        """Takes the last change back; False if there is none."""
        with self._lock:
            if not self._past:
                return False
            self.given = self._past.pop()
            self._write()
            return True

    def open_suggestions(self, suggestions: Sequence[Suggestion]) -> list[Suggestion]:
        """Those of clusters that are neither merged already nor void."""
        table = self.legend.table
        return [s for s in suggestions if table[s.one] != table[s.other] and min(table[s.one], table[s.other]) >= 0]

    def _change(self, names: dict[int, str | None], without: int | None = None) -> None:
        with self._lock:
            before, past = self.given, len(self._past)
            after = {number: name for number, name in before.items() if number != without} | names
            if after == before:
                return
            try:
                self.given = after
                self.legend  # noqa: B018 (raises where every cluster would be void)
                self._past.append(before)
                self._write()
            except (ValueError, OSError):
                self.given = before
                del self._past[past:]
                raise

    def _write(self) -> None:
        if self.given:
            write_legend(self.run, self.given, self.checksum, self.legend.colours)
        else:
            (self.run / FILE).unlink(missing_ok=True)
