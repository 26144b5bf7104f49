"""A cache is whole or absent, never mixed up, resumed where it was, shared by processes, and fits on the disk."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import namedtuple

import numpy as np
import pytest

import depthg.storage.cache
from depthg.storage.cache import Build, cache_key, cached, folder_bytes, is_whole, rows_per_shard

ARRAYS = {"a": ((20, 3), np.int32)}
TEMPORARY = {"t": ((20,), np.float32)}
EXPECTED = np.arange(20)[:, None].repeat(3, 1)


class Filler:
    """Fills array a through array t, in shards of 3, and counts what it fills; may fail at a row."""

    def __init__(self, fail_at=None):
        self.rows, self.fail_at = [], fail_at

    def __call__(self, build: Build):
        for rows in build.shards("t", 20, 3):
            self.fill(build, "t", rows, np.arange(rows.start, rows.stop))
        for rows in build.shards("a", 20, 3):
            self.fill(build, "a", rows, np.array(build.read("t"))[rows.start : rows.stop, None].repeat(3, 1))
        for _ in build.once("note"):
            build.file("note.txt", lambda path: path.write_text("made"))

    def fill(self, build, name, rows, values):
        if self.fail_at == (name, rows.start):
            raise RuntimeError("stop")
        build.write(name, rows.start, values)
        self.rows.append((name, rows.start))


def make(root, filler=None, settings=None):
    folder = cached(root, "kind", settings or {"x": 1}, filler or Filler(), ARRAYS, TEMPORARY)
    np.testing.assert_array_equal(np.load(folder / "a.npy"), EXPECTED)
    return folder


def test_a_cache_is_built_once_per_settings_and_says_what_it_is(tmp_path):
    first, again, other = Filler(), Filler(), Filler()
    folder = make(tmp_path, first)
    assert make(tmp_path, again) == folder and again.rows == []
    assert make(tmp_path, other, {"x": 2}) != folder and other.rows == first.rows
    assert sorted(path.name for path in folder.iterdir()) == ["a.npy", "manifest.json", "note.txt"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["settings"]["x"] == 1 and set(manifest["bytes"]) == {"a.npy", "note.txt"}
    assert folder.name == cache_key({"x": 1}) and not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("damage", ["truncated", "missing", "no manifest", "broken manifest", "other manifest"])
def test_a_damaged_cache_is_built_again(tmp_path, damage):
    folder = make(tmp_path)
    if damage == "truncated":
        (folder / "a.npy").write_bytes((folder / "a.npy").read_bytes()[:-3])
    elif damage == "missing":
        (folder / "a.npy").unlink()
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_text("{" if damage == "broken manifest" else "[]")
    filler = Filler()
    make(tmp_path, filler)
    assert len(filler.rows) == 14 and is_whole(folder)


@pytest.mark.parametrize("fail_at", [("t", 0), ("t", 9), ("a", 0), ("a", 18)])
def test_a_failed_build_goes_on_where_it_was(tmp_path, fail_at):
    whole, broken, rest = Filler(), Filler(fail_at), Filler()
    make(tmp_path / "whole", whole)
    with pytest.raises(RuntimeError, match="stop"):
        make(tmp_path, broken)
    assert not list(tmp_path.glob("kind/[!.]*")), "nothing carries the name of a whole cache"
    make(tmp_path, rest)
    assert broken.rows + rest.rows == whole.rows


def test_rows_of_a_wrong_shape_are_refused(tmp_path):
    def too_wide(build):
        build.write("a", 0, np.zeros((2, 4)))

    def too_far(build):
        build.write("a", 19, np.zeros((2, 3)))

    for build in (too_wide, too_far):
        with pytest.raises(ValueError, match="do not fit a"):
            cached(tmp_path, "kind", {}, build, ARRAYS)


Usage = namedtuple("Usage", "total used free")


def test_too_little_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(
        depthg.storage.cache.shutil, "disk_usage", lambda _: Usage(0, 0, depthg.storage.cache.RESERVE + 300)
    )
    filler = Filler()
    with pytest.raises(OSError, match=r"has 67.1 MB of room, but needs another 320 bytes and .*cache\.dir") as caught:
        make(tmp_path, filler)
    assert caught.value.errno == errno.ENOSPC and filler.rows == []
    monkeypatch.setattr(
        depthg.storage.cache.shutil, "disk_usage", lambda _: Usage(0, 0, depthg.storage.cache.RESERVE + 320)
    )
    make(tmp_path)


def test_a_disk_that_fills_up_leaves_no_cache_and_keeps_the_finished_shards(tmp_path, monkeypatch):
    original = Build.write

    def write(self, name, start, rows):
        if start == 12:  # half of the rows arrive
            original(self, name, start, rows[:1])
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, name, start, rows)

    first, rest = Filler(), Filler()
    with monkeypatch.context() as patch:
        patch.setattr(Build, "write", write)
        with pytest.raises(OSError, match=r"kind cache in .*: No space left on device; .*set cache\.dir"):
            make(tmp_path, first)
    assert not list(tmp_path.glob("kind/[!.]*"))
    make(tmp_path, rest)
    assert first.rows == [("t", start) for start in range(0, 12, 3)] and rest.rows[0] == ("t", 12)


def test_an_error_about_the_data_is_not_blamed_on_the_cache(tmp_path):
    def build(build):
        open("/no/such/photo.png")

    with pytest.raises(FileNotFoundError, match="photo"):
        cached(tmp_path, "kind", {}, build, ARRAYS)


@pytest.mark.parametrize(
    "error", [FileNotFoundError("no weights; get them there"), ConnectionRefusedError(errno.ECONNREFUSED, "refused")]
)
def test_an_error_without_a_file_is_not_blamed_on_the_cache(tmp_path, error):
    def build(build):
        raise error

    with pytest.raises(type(error)) as caught:
        cached(tmp_path, "kind", {}, build, ARRAYS)
    assert caught.value is error


class Killed(BaseException):
    """Ends a build as a signal would, without clean-up of its own."""


@pytest.mark.parametrize("name", ["unlink", "write_text", "rename", "iterdir"])
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_step_of_the_end_it_is_finished_by_the_next(tmp_path, monkeypatch, name, after):
    whole = make(tmp_path / "whole")
    original = getattr(depthg.storage.cache.Path, name)

    def killed(self, *arguments, **keywords):
        if after:
            original(self, *arguments, **keywords)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        filler = Filler()

        def build(construction):
            filler(construction)
            patch.setattr(depthg.storage.cache.Path, name, killed)

        cached(tmp_path / "cut", "kind", {"x": 1}, build, ARRAYS, TEMPORARY)
    monkeypatch.setattr(
        depthg.storage.cache.shutil, "disk_usage", lambda _: Usage(0, 0, 0)
    )  # there is nothing left to write
    rest = Filler()
    cut = make(tmp_path / "cut", rest)
    assert rest.rows == []
    for path in whole.iterdir():
        assert (cut / path.name).read_bytes() == path.read_bytes()


def test_bytes_of_a_folder_that_vanishes_are_counted_as_far_as_they_are_there(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(bytes(10_000))
    assert folder_bytes(tmp_path) >= 10_000
    monkeypatch.setattr(depthg.storage.cache.os, "stat", lambda path: exec("raise FileNotFoundError(path)"))
    assert folder_bytes(tmp_path) == 0 and folder_bytes(tmp_path / "nowhere") == 0


def test_rows_per_shard():
    assert rows_per_shard(2**20, 64.0) == 64 and rows_per_shard(2**20, 64.0, 48) == 48
    assert rows_per_shard(2**30, 64.0, 16) == 16 and rows_per_shard(1, 64.0) == depthg.storage.cache.MOST_ROWS


SCRIPT = """
import sys, time
from pathlib import Path
import numpy as np
from depthg.storage.cache import cached
mine = []
def build(build):
    for name in ("t", "a"):
        for rows in build.shards(name, 20, 3):
            for row in rows:
                time.sleep(0.005)
                values = np.arange(row, row + 1)
                build.write(name, row, values if name == "t" else values[:, None].repeat(3, 1))
            mine.append((name, rows.start))
    for _ in build.once("note"):
        build.file("note.txt", lambda path: path.write_text("made"))
print("started", flush=True)
folder = cached(Path(sys.argv[1]), "kind", {"x": 1}, build, {"a": ((20, 3), np.int32)}, {"t": ((20,), np.float32)})
print(len(mine))
"""


def start(root, **environment):
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(root)], stdout=subprocess.PIPE, env=variables)


def test_processes_that_build_the_same_cache_share_the_work(tmp_path):
    processes = [start(tmp_path, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    filled = [int(process.communicate(timeout=60)[0].split()[-1]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum(filled) == 14, "no shard is filled twice"
    np.testing.assert_array_equal(np.load(tmp_path / "kind" / cache_key({"x": 1}) / "a.npy"), EXPECTED)
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path):
    make(tmp_path / "whole")
    folder, dice, kills = tmp_path / "cut", random.Random(0), 0
    for _ in range(8):
        process = start(folder)
        process.stdout.readline()
        time.sleep(dice.uniform(0, 0.12))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if not is_whole(folder / "kind" / cache_key({"x": 1})):
            assert not list(folder.glob("kind/[!.]*"))
    assert kills >= 2
    process = start(folder)
    assert process.communicate(timeout=60) and process.returncode == 0
    for path in (tmp_path / "whole").rglob("*.*"):
        assert (folder / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
