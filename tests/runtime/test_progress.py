"""The progress bar counts what is done here and elsewhere, and only the first rank draws it."""

import pytest

from depthg.runtime.progress import ProgressBar, Rate


def test_work_done_elsewhere_counts_but_not_in_the_rate(capsys):
    with ProgressBar("features", 10) as bar:
        bar.skip(4)
        task = bar._bar.tasks[0]
        assert task.completed == 4 and task.speed is None
        bar.note("waiting")
        assert task.fields["note"] == "waiting"
        bar.note("")
        for _ in range(6):
            bar.advance()
        assert task.finished
    assert "features" in capsys.readouterr().out


@pytest.mark.parametrize(("rank", "drawn"), [(None, True), ("0", True), ("1", False)])
def test_only_the_first_rank_draws(monkeypatch, capsys, rank, drawn):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
    with ProgressBar("depth", 1) as bar:
        bar.advance()
    assert ("depth" in capsys.readouterr().out) == drawn


def test_rate():
    task = type("Task", (), {"speed": 1234.5})
    assert Rate().render(task) == "1.23e+03/s" and Rate().render(type("Task", (), {"speed": None})) == ""
    assert Rate(" it").render(type("Task", (), {"speed": 5.25})) == "5.25 it/s"
