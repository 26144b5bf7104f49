"""Event files: TensorBoard's own reader finds the curves; a resumed run replaces what came after its checkpoint."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from depthg.storage.event_file import EventFile


def curve(folder, tag):
    found = EventAccumulator(str(folder))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(tag)]


def test_tensorboard_reads_the_curves_and_a_resumed_run_replaces_its_end(tmp_path):
    first = EventFile(tmp_path / "board")
    for step in (10, 20, 30):
        first.write(step, {"loss": step / 8, "loss/self": -step / 8})
    assert curve(tmp_path / "board", "loss/self") == [(10, -1.25), (20, -2.5), (30, -3.75)], "written at once"
    first.close()
    second = EventFile(tmp_path / "board", 21)
    second.write(30, {"loss": 1.0})
    second.close()
    assert curve(tmp_path / "board", "loss") == [(10, 1.25), (20, 2.5), (30, 1.0)]
    assert len(list((tmp_path / "board").iterdir())) == 2


def test_a_file_that_cannot_be_written_is_an_error_here(tmp_path):
    board = EventFile(tmp_path)
    board.close()
    with pytest.raises(ValueError, match="closed"):
        board.write(1, {"a": 1.0})
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        EventFile(tmp_path / "file" / "board")
