"""What comes between a run and its end: a full disk, a read-only or deleted folder, a second training, signals."""

import errno
import io
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from miniature import arguments, same, settings, weights, write_camvid

from depthg.config.composing import load_config
from depthg.model.checkpoints import FILE, read_checkpoint
from depthg.model.run_folder import LOCK_FILE, MetricLog, RunLock, create_run
from depthg.storage.whole_files import MACHINE, PARTIAL, remove_partials, write_text, write_whole
from depthg.train import train
from depthg.training.trainer import Trainer

resource = pytest.importorskip("resource")
fcntl = pytest.importorskip("fcntl")
SLOW = pytest.mark.slow


@pytest.fixture
def root(tmp_path):
    return write_camvid(tmp_path / "camvid")


@contextmanager
def full_disk():
    """Gives a switch for a limit of 1,000 bytes a file, which fails as a full disk does: in the middle of a write.

    The limit ends with the block, and not with the test: pytest's own output may be a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_and_the_last_checkpoint_stays(root, tmp_path, monkeypatch, capsys):
    train(settings(root, "name=whole"))
    original = Trainer.save

    def save(self, *name):
        if self.iteration == 8:
            fill()
        original(self, *name)

    run = tmp_path / "runs" / "cut"
    with monkeypatch.context() as patch, full_disk() as fill:
        patch.setattr(Trainer, "save", save)
        with pytest.raises(
            OSError, match=rf"cannot write {run}/checkpoints/last/{FILE}: File too large; free"
        ) as caught:
            train(settings(root, "name=cut", "checkpoint.every=4", "log_every=100"))
    assert caught.value.errno == errno.EFBIG
    assert read_checkpoint(run / "checkpoints" / "last")[1]["iteration"] == 4
    assert not [path for path in run.rglob(".*")], "neither partial files nor a lock stay"
    train(load_config([f"resume={run}"]))
    assert same(weights(tmp_path / "runs" / "whole"), weights(run))


def test_a_full_disk_under_the_log_is_named(tmp_path):
    log = MetricLog(tmp_path)
    with full_disk() as fill, pytest.raises(OSError, match=rf"cannot write {tmp_path}: File too large; free"):
        fill()
        for iteration in range(100):
            log.write(iteration, {"loss": 0.5, "loss.self": 0.25})
    log.close()


def test_a_read_only_folder_is_named_before_the_training(root, tmp_path, monkeypatch):
    config = settings(root, "name=a")
    train(config)
    run, before = tmp_path / "runs" / "a", weights(tmp_path / "runs" / "a")
    opened = os.open

    def read_only(path, flags, *rest, **keywords):
        if flags & (os.O_RDWR | os.O_WRONLY) and str(path).startswith(str(run)):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opened(path, flags, *rest, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)  # root may write anywhere, so permissions would not do
        with pytest.raises(OSError, match=rf"cannot write {run}: Read-only file system; free some room or make"):
            train(load_config([f"resume={run}", "iterations=30"]))
    assert same(before, weights(run))


def test_a_deleted_run_folder_is_named(root, tmp_path, monkeypatch):
    original = Trainer.save

    def save(self, *name):
        shutil.rmtree(self.run)
        self.run.write_text("in the way")
        original(self, *name)

    monkeypatch.setattr(Trainer, "save", save)
    with pytest.raises(OSError, match=r"cannot write .*checkpoint\.safetensors: (Not a directory|File exists)"):
        train(settings(root, "name=a"))


@SLOW
def test_a_deleted_cache_does_not_change_a_run_and_is_made_again(root, tmp_path, monkeypatch):
    train(settings(root, "name=whole"))
    original = Trainer.reinitialize_clusters

    def deleted(self):
        shutil.rmtree(tmp_path / "cache")
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "reinitialize_clusters", deleted)
        train(settings(root, "name=a"))
    assert same(weights(tmp_path / "runs" / "whole"), weights(tmp_path / "runs" / "a"))
    train(settings(root, "name=b"))
    assert same(weights(tmp_path / "runs" / "whole"), weights(tmp_path / "runs" / "b"))


# ---- one training per folder


def hold(run):
    """A process that trains in a folder, as far as others can see; its number."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        RunLock(run).take()
        os.write(writing, b"x")
        time.sleep(60)
        os._exit(0)
    os.read(reading, 1)
    os.close(reading), os.close(writing)
    return process


def end(process):
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_a_second_training_into_a_folder_is_refused(root, tmp_path):
    run = tmp_path / "runs" / "a"
    train(settings(root, "name=a", "iterations=8"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    process = hold(run)
    try:
        for config in (load_config([f"resume={run}", "iterations=20"]), settings(root, "name=a", "overwrite=true")):
            with pytest.raises(FileExistsError, match=rf"process {process} on .* trains in {run}; wait for it"):
                train(config)
        (run / LOCK_FILE).unlink()  # a lock that somebody deleted keeps nobody out, but the others' files are whole
        assert {path: path.read_bytes() for path in before} == before
    finally:
        end(process)
    train(load_config([f"resume={run}", "iterations=20"]))


def test_the_lock_of_a_killed_process_is_free_and_of_two_that_start_at_once_one_wins(root, tmp_path):
    run = tmp_path / "runs" / "a"
    end(hold(run))
    assert (run / LOCK_FILE).is_file()
    train(settings(root, "name=a", "iterations=4"))
    assert not (run / LOCK_FILE).exists()
    first, second = settings(root, "name=b", "iterations=4"), settings(root, "name=b", "iterations=4")
    lock = RunLock(tmp_path / "runs" / "b")
    trainer = Trainer(first, lock)
    with pytest.raises(FileExistsError, match="trains in"):
        train(second)
    trainer.log.close()
    lock.drop()
    with pytest.raises(FileExistsError, match="overwrite=true"):
        create_run(second)


def test_a_lock_of_a_later_run_in_the_same_place_stays(tmp_path):
    first, second = (RunLock(tmp_path / "run") for _ in range(2))
    first.take()
    shutil.rmtree(tmp_path / "run")
    second.take()
    first.drop()
    with pytest.raises(FileExistsError, match="trains in"):
        RunLock(tmp_path / "run").take()
    second.drop()


def test_a_log_that_cannot_be_closed_hides_nothing(root, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MetricLog, "write", fail)
    monkeypatch.setattr(MetricLog, "close", fail)
    config = settings(root, "name=closed")
    with pytest.raises(OSError):
        train(config)
    RunLock(tmp_path / "runs" / "closed").take().drop()  # free again

    class Full(io.StringIO):
        def close(self):
            fail()

    monkeypatch.undo()
    log = MetricLog(create_run(settings(root, "name=full")))
    log.file.close()
    log.file = Full()
    log.close()
    assert log.board.file.closed


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EIO])
def test_a_file_system_without_locks_is_used_and_a_broken_one_is_named(tmp_path, monkeypatch, capsys, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    lock = RunLock(tmp_path / "run")
    if number == errno.ENOLCK:
        lock.take().drop()
        assert f"the file system of {tmp_path / 'run'} has no locks" in capsys.readouterr().err
        return
    with pytest.raises(OSError, match=rf"cannot write {tmp_path}/run/\.lock: Input/output error"):
        lock.take()


def test_a_look_at_the_lock_keeps_nobody_out(tmp_path, monkeypatch):
    path = tmp_path / "run" / LOCK_FILE
    path.parent.mkdir()
    path.touch()
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        threading.Timer(0.2, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        with monkeypatch.context() as patience:
            patience.setattr("depthg.model.run_folder.CHECK_S", 20.0)  # this machine may be slow
            lock = RunLock(path.parent).take()
        with pytest.raises(FileExistsError, match=f"process {os.getpid()} .* trains in"):
            RunLock(path.parent).check()
        lock.drop()


def test_locks_are_handed_over_without_a_gap(tmp_path):
    """Many processes that take and drop a lock, which removes its file, are never in at the same time."""
    inside, children = tmp_path / "inside", []
    for _ in range(4):
        process = os.fork()
        if not process:
            clean = 0
            for _ in range(60):
                lock = RunLock(tmp_path / "run")
                try:
                    lock.take()
                except FileExistsError:
                    continue
                try:
                    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                    os.unlink(inside)
                except FileExistsError:
                    clean = 1
                lock.drop()
            os._exit(clean)
        children.append(process)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4


def test_rests_of_killed_writers_are_removed_and_those_of_living_ones_are_not(tmp_path, monkeypatch):
    process = hold(tmp_path / "x")
    own, other, ended = (f".partial-{MACHINE}-{number}-0" for number in (os.getpid(), process, 99999999))
    far, far_and_old = ".partial-00000000-1-0", ".partial-00000000-1-1"  # of other machines
    for name in (own, other, ended, far, far_and_old, ".lock", ".partial-e.x"):
        (tmp_path / name).write_text("half")
    os.utime(tmp_path / far_and_old, (0, 0))
    try:
        remove_partials(tmp_path)
        assert {path.name for path in tmp_path.glob(".*")} == {other, far, ".lock", ".partial-e.x"}
    finally:
        end(process)


def test_unfinished_files_have_names_of_their_own(tmp_path):
    seen = []

    def write(partial):
        seen.append(partial.name)
        partial.write_text("x")

    name = "n" * 255  # as long as file systems allow
    threads = [threading.Thread(target=write_whole, args=(tmp_path / name, write)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 8 and all(PARTIAL.fullmatch(name) for name in seen)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_folders_are_flushed_after_the_rename(tmp_path, monkeypatch):
    steps = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, o=original, n=name: (steps.append(n), o(*a))[1])
    write_text(tmp_path / "a", "b")
    assert steps == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_folders_that_cannot_be_flushed(tmp_path, monkeypatch, number):
    original = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if number == errno.EINVAL:  # some file systems flush no folders
        write_text(tmp_path / "a", "b")
    else:
        with pytest.raises(OSError, match=rf"cannot flush {tmp_path} to the disk: Input/output error; .* whole"):
            write_text(tmp_path / "a", "b")
    assert (tmp_path / "a").read_text() == "b"


# ---- signals to a process of its own

LOOP = """import signal, sys, time
from depthg import train
from depthg.training import trainer
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
{}
sys.argv = ['train', *sys.argv[1:]]
train.main()
"""
PLACES = {
    "preparation": "trainer.Preparation.run = lambda self: (print('here', flush=True), time.sleep(60))",
    "evaluation": "train.TrainingScores.all = lambda self: (print('here', flush=True), time.sleep(60))",
    "training": "s = trainer.Step.losses\ntrainer.Step.losses = lambda self, i: (i == 5 and print('here', flush=True), "
    "time.sleep(0.3 * (i >= 5)), s(self, i))[-1]",
}  # fmt: skip


@pytest.mark.parametrize(
    ("place", "number"),
    [
        pytest.param("preparation", signal.SIGTERM, marks=SLOW), ("training", signal.SIGTERM),
        pytest.param("evaluation", signal.SIGINT, marks=SLOW),
    ],
)  # fmt: skip
def test_signals_end_with_a_sentence_at_any_stage(root, tmp_path, place, number):
    config = settings(root, "name=a", "iterations=8")
    run = create_run(config)
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP.format(PLACES[place]), f"resume={run}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "300"},
    )  # fmt: skip
    for line in process.stdout:
        if "here" in line:
            break
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    if place == "preparation":
        assert "stopped before the training; what is prepared is kept" in out
    else:
        assert re.search(rf"stopped; continue with: python -m depthg\.train resume={run}", out)
        assert read_checkpoint(run / "checkpoints" / "last")[1]["iteration"] == {"training": 6, "evaluation": 8}[place]
    assert not (run / LOCK_FILE).exists()


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=SLOW), signal.SIGINT])
def test_a_preparation_ends_with_a_sentence(root, number):
    code = """import signal, sys, time
from depthg import prepare
signal.signal(signal.SIGINT, signal.default_int_handler)
prepare.Preparation.run = lambda self: (print('here', flush=True), time.sleep(60))
prepare.main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, "")
    assert errors == "stopped; finished shards are kept, and the same command goes on from them\n"


@pytest.mark.parametrize("whole_group", [False, pytest.param(True, marks=SLOW)])
def test_a_table_passes_on_its_end(tmp_path, whole_group):
    """The training that a table runs saves, once, whether SIGTERM goes to the table alone or to both."""
    train = """if True:
        import time
        from depthg.runtime.stopping import StopRequest
        with StopRequest() as stop:
            print("here", flush=True)
            while not stop.requested:
                time.sleep(0.05)
            time.sleep(0.5)
            print("saved", flush=True)
        raise SystemExit(130)"""
    code = f"""import sys
from depthg import reproduce
from depthg.paper.runs import run_command
reproduce.reproduce = lambda *_: run_command([sys.executable, "-c", {train!r}, "x"])
sys.exit(reproduce.main(["table4"]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "here\n"
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "saved\n", "stopped; the same command goes on from here\n")
