"""A process that decodes photos (``data.workers``; see loading.py).

It receives lists of views, pickled by the process that started it and by no other, and then indices of views.
"""

from __future__ import annotations

import pickle

import torch

from depthg.data.transforms import PARTS, View, Views
from depthg.runtime.seeds import seed_everything, seed_of
from depthg.runtime.worker_pool import Arrays, serve


def as_arrays(view: View, place: int) -> Arrays:
    """A view as a part of a message, the ``place``-th in it."""
    parts = {"image": view.image, "label": view.label, **{f"maps.{name}": x for name, x in view.maps.items()}}
    return {f"{place}.{name}": part.numpy() for name, part in parts.items() if part is not None}


def as_view(arrays: Arrays, place: int) -> View:
    """The inverse of :func:`as_arrays`."""
    start = f"{place}."
    parts = {name.removeprefix(start): torch.from_numpy(x) for name, x in arrays.items() if name.startswith(start)}
    maps = {name.removeprefix("maps."): parts[name] for name in parts if name.startswith("maps.")}
    return View(parts.get("image"), parts.get("label"), maps)


def main() -> None:
    """Answers numbers of views from standard input until it closes."""
    lists: dict[int, tuple[Views, int]] = {}

    def answer(job: Arrays) -> Arrays:
        number = int(job["list"][0])
        if "views" in job:
            try:
                lists[number] = pickle.loads(job["views"].tobytes()), int(job["seed"][0])
            except Exception as error:  # whatever the split's own code raises
                raise ValueError(
                    f"what reads the photos cannot be set up in another process ({type(error).__name__}: {error}); "
                    "define its class in a module that can be imported there, or use data.workers=0"
                ) from error
            return {}
        views, seed = lists[number]
        numbers, part = job["numbers"].tolist(), PARTS[int(job["part"][0])]
        seed_everything(seed_of(seed, "view", views.photo(numbers[0])))
        found = [views.load(number, (part,)) for number in numbers]
        return {name: x for place, view in enumerate(found) for name, x in as_arrays(view, place).items()}

    serve(answer)


if __name__ == "__main__":
    main()
