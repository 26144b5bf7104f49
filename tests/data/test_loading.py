"""Views come in order whatever the threads do, errors come through, and a fingerprint changes with the files."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from depthg.data.base import FileSplit, Subset
from depthg.data.files import DataError, label_table
from depthg.data.loading import Loader, fingerprint, write_views
from depthg.data.transforms import View, Views
from depthg.depth.maps import MappedDepth
from depthg.depth.sources import GroundPlane
from depthg.storage.cache import cached


class Fake:
    """Views that take the longer the lower their number."""

    def __init__(self, count, broken=None):
        self.count, self.broken, self.threads, self.asked = count, broken, set(), []

    def __len__(self):
        return self.count

    def load(self, number, parts):
        self.threads.add(threading.get_ident())
        self.asked.append((number, parts))
        time.sleep(0.002 * (number % 5 == 0))
        if number == self.broken:
            raise DataError(f"photo {number} is broken")
        return View(torch.full((1, 1, 1), number, dtype=torch.uint8), torch.full((2,), number))


def test_views_come_in_the_given_order_from_several_threads():
    views = Fake(200)
    numbers = np.random.default_rng(0).permutation(200)
    assert [int(view.image) for view in Loader().load(views, numbers, "image")] == numbers.tolist()
    assert len(views.threads) > 1 and {parts for _, parts in views.asked} == {("image",)}


def test_no_more_than_needed_is_decoded_ahead():
    views = Fake(1000)
    loader = Loader().load(views, range(1000), "image")
    next(loader)
    loader.close()
    assert len(views.asked) <= 64 + 16


def test_a_broken_photo_is_reported():
    with pytest.raises(DataError, match="photo 30 is broken"):
        list(Loader().load(Fake(60, broken=30), range(60), "image"))


def test_a_row_per_view_is_written(tmp_path):
    views = Fake(11)

    def build(construction):
        write_views(construction, "labels", views, "label", lambda view: {"labels": view.label.numpy()}, 4, Loader())

    folder = cached(tmp_path, "labels", {}, build, {"labels": ((11, 2), np.int16)})
    np.testing.assert_array_equal(np.load(folder / "labels.npy"), np.arange(11)[:, None].repeat(2, 1))


# ---- worker processes


class Noise:
    """A split whose photos draw random numbers, as augmentations of one's own would."""

    def __init__(self, count=9, fail=None):
        self.names = [f"photo {number}" for number in range(count)]
        self.fail = fail

    def __len__(self):
        return len(self.names)

    def image(self, index):
        if self.fail is not None and index == 4:
            self.fail(index)
        levels = random.randrange(256), np.random.randint(256), int(torch.randint(256, ()))
        return np.full((20, 30, 3), levels, np.uint8)

    def process(self, index):
        time.sleep(0.05)  # or the first process might do it all
        return np.full((20, 30), os.getpid(), np.float32)


def broken(index):
    raise DataError(f"photo {index} is broken")


def unknown(index):
    raise LookupError("nowhere")


def kill(index):
    os.kill(os.getpid(), signal.SIGKILL)


def levels(loader, crop="none"):
    views = Views(Noise(), (8, 8), crop)
    return [view.image.unique().tolist() for view in loader.load(views, range(len(views)), "image")]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(7):
        Image.fromarray(rng.integers(256, size=(24, 40, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        Image.fromarray(rng.integers(3, size=(24, 40), dtype=np.uint8)).save(folder / f"{number}.tif")
    paths = sorted(folder.glob("*.png"))
    labels, table = [path.with_suffix(".tif") for path in paths], label_table({0: 0, 1: 1, 2: 2})
    return FileSplit(paths, root=folder, labels=labels, table=table)


def test_processes_give_the_views_of_threads_in_order(photos):
    loader = Loader(2)
    for crop in ("none", "five"):
        views = Views(photos, (8, 16), crop, maps={"depth": MappedDepth(photos, GroundPlane())}, map_size=(2, 4))
        numbers = np.random.default_rng(0).permutation(len(views))
        for part in ("image", "label", "maps"):
            left = loader.load(views, numbers, part)
            next(left)
            left.close()  # in the middle
            expected = Loader().load(views, numbers, part)
            for found, view in zip(loader.load(views, numbers, part), expected, strict=True):
                torch.testing.assert_close(vars(found), vars(view), rtol=0, atol=0)


def test_processes_decode_and_end_with_the_loader():
    views, loader = Views(Noise(), (8, 8), maps={"process": Noise().process}), Loader(2)
    found = {int(view.maps["process"][0, 0, 0]) for view in loader.load(views, range(9), "maps")}
    assert len(found) == 2 and os.getpid() not in found
    again = {int(view.maps["process"][0, 0, 0]) for view in loader.load(views, range(9), "maps")}
    assert again == found  # they are kept
    loader.close()
    assert not any(Path(f"/proc/{process}").exists() for process in found)
    found = {int(view.maps["process"][0, 0, 0]) for view in loader.load(views, range(9), "maps")}
    assert len(found) == 2 and not found & again  # new ones
    del loader
    for _ in range(100):  # a thread may let go of it a moment later
        if not any(Path(f"/proc/{process}").exists() for process in found):
            return
        time.sleep(0.1)
    raise AssertionError("worker processes are still there")


def test_processes_import_from_where_this_one_does(tmp_path, monkeypatch):
    """Relative places too; a package named as one beside this project's; and what is printed meanwhile does no harm."""
    (tmp_path / "own" / "kernels").mkdir(parents=True)
    (tmp_path / "own" / "kernels" / "__init__.py").touch()
    (tmp_path / "own" / "sitecustomize.py").write_text("print('hello from the site')")
    text = """if True:
        import numpy as np
        print("hello from the split")
        class Mine:
            names = ["a"]
            def __len__(self):
                return 1
            def image(self, index):
                return np.full((8, 8, 3), 7, np.uint8)"""
    (tmp_path / "own" / "kernels" / "mine.py").write_text(text)
    code = """if True:
        import sys
        sys.path.insert(0, "own")
        from kernels.mine import Mine
        from depthg.data.loading import Loader
        from depthg.data.transforms import Views
        print([int(view.image[0, 0, 0]) for view in Loader(1).load(Views(Mine(), (8, 8)), [0], "image")])"""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "own"))
    with start(code) as process:
        output, errors = process.communicate()
    lines = output.splitlines()
    assert "[7]" in lines and not errors and lines.count("hello from the split") == 2


def test_relative_paths_are_those_of_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a" / "0.png")
    monkeypatch.chdir(tmp_path)
    views = Views(FileSplit([Path("a/0.png")], root=Path("a")), (8, 8))
    assert [view.image[0].unique().tolist() for view in Loader(1).load(views, [0], "image")] == [[255]]


def start(code):
    """A process that runs ``code`` in a group of its own, as a terminal starts one, with pipes."""
    places = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", code], **pipes, text=True, env=places, start_new_session=True)


READS = """if True:
    from depthg.data.loading import Loader
    from depthg.data.transforms import Views
    from test_loading import Noise
    views = Views(Noise(), (8, 8), maps={"process": Noise().process})
    for view in Loader(1).load(views, range(9), "maps"):
        print(int(view.maps["process"][0, 0, 0]), flush=True)
    input()"""


def test_signals_are_left_to_the_one_that_started_the_processes():
    with start(READS) as process:
        worker = int(process.stdout.readline())
        os.kill(worker, signal.SIGTERM)  # as when a cluster ends all processes of a job
        assert [int(process.stdout.readline()) for _ in range(8)] == [worker] * 8
        process.kill()
        assert not process.stderr.read()


def test_an_interrupt_while_processes_start():
    code = """if True:
        import signal, time
        import numpy as np
        from depthg.runtime.worker_pool import WorkerPool, array_text
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
        with WorkerPool(["depthg.data.load_worker"], 2, {}) as pool:
            try:
                print("started", flush=True)
                time.sleep(60)
            except KeyboardInterrupt:
                for _ in range(2):
                    print(array_text(pool.ask({"list": np.array([3])})["type"]), flush=True)"""
    with start(code) as process:
        assert process.stdout.readline() == "started\n"
        for number in (signal.SIGINT, signal.SIGTERM):
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            assert len(children) == 2
            for child in children:
                os.kill(int(child), number)
        os.kill(process.pid, signal.SIGINT)
        output, errors = process.communicate()
    assert (process.returncode, output, errors) == (0, "KeyError\n" * 2, "")


@pytest.mark.parametrize("views", [1, 9])  # killed while a photo is decoded, and when all is done
def test_processes_end_without_a_word_when_the_one_that_started_them_is_killed(views):
    with start(READS) as process:
        found = {process.stdout.readline() for _ in range(views)}
        process.kill()
        assert len(found) == 1 and not process.stderr.read(), "open until the worker process has ended"


def test_a_split_that_only_this_process_knows():
    code = """if True:
        import numpy as np
        from depthg.data.loading import Loader
        from depthg.data.transforms import Views
        class Mine:
            names = ["a"]
            def __len__(self):
                return 1
            def image(self, index):
                return np.zeros((8, 8, 3), np.uint8)
        views = Views(Mine(), (8, 8))
        print(len(list(Loader().load(views, [0], "image"))))
        try:
            list(Loader(1).load(views, [0], "image"))
        except ValueError as error:
            print(error)"""
    with start(code) as process:
        output, errors = process.communicate()
    assert not errors and output.startswith("1\nwhat reads the photos cannot be set up in another process (Attribute")
    assert "'Mine'" in output and output.endswith("or use data.workers=0\n")


@pytest.mark.slow
def test_random_numbers_of_a_photo_do_not_depend_on_the_number_of_processes():
    two = Loader(2)
    found = levels(two)
    assert len({tuple(photo) for photo in found}) > 5  # they differ from photo to photo
    assert levels(Loader(1)) == found != levels(Loader(1, seed=1))
    assert levels(two, "five") == [photo for photo in found for _ in range(5)]


def test_errors_of_processes_are_those_of_threads():
    loader = Loader(1)
    for reader in (Loader(), loader):
        with pytest.raises(DataError, match="photo 4 is broken"):
            list(reader.load(Views(Noise(fail=broken), (8, 8)), range(9), "image"))
    with pytest.raises(OSError, match="a process that decodes photos: LookupError: nowhere"):
        list(loader.load(Views(Noise(fail=unknown), (8, 8)), range(9), "image"))
    with pytest.raises(ValueError, match=r"data\.workers=1: .*\(Noise\) cannot be sent .*use data\.workers=0"):
        list(loader.load(Views(Noise(fail=lambda index: None), (8, 8)), range(9), "image"))
    with pytest.raises(OSError, match=r"ended \(exit code -9\).*fewer than data\.workers=1"):
        list(loader.load(Views(Noise(fail=kill), (8, 8)), range(9), "image"))
    with pytest.raises(ValueError, match=r"data\.workers=-1"):
        Loader(-1)


def test_a_fingerprint_changes_with_names_sizes_times_and_choice(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"1234")
        os.utime(tmp_path / f"{name}.png", (1, 1))

    def split(names="abc", labels=None):
        return FileSplit([tmp_path / f"{name}.png" for name in names], root=tmp_path, labels=labels)

    found = {
        "same": fingerprint(split()),
        "fewer": fingerprint(split("ab")),
        "subset": fingerprint(Subset(split(), [0, 2])),
        "other subset": fingerprint(Subset(split(), [0, 1])),
        "labels": fingerprint(split(labels=[tmp_path / "a.png", None, None])),
    }
    assert fingerprint(split()) == found["same"]
    os.utime(tmp_path / "b.png", (2, 2))
    found["time"] = fingerprint(split())
    (tmp_path / "b.png").write_bytes(b"12345")
    os.utime(tmp_path / "b.png", (1, 1))
    found["size"] = fingerprint(split())
    assert len(set(found.values())) == len(found)
    (tmp_path / "c.png").unlink()
    with pytest.raises(DataError, match=r"c\.png"):
        fingerprint(split())
