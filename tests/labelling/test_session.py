"""Naming by hand: every change is kept in the run's legend, and can be taken back."""

import pytest

from depthg.inference.survey import Suggestion
from depthg.labelling.session import Session
from depthg.model.legend import FILE, read_legend

NAMES = tuple(f"cluster {i}" for i in range(5))


@pytest.fixture
def session(tmp_path):
    return Session(tmp_path, NAMES, "0a")


def stored(session):
    found = read_legend(session.run, NAMES, "0a")
    return None if found is None else [found.names[i] if i >= 0 else None for i in found.table]


def test_names_merges_and_void_are_written_at_once(session):
    session.rename(0, " road ")
    session.rename(3, "road")
    session.make_void(1)
    assert stored(session) == ["road", None, "cluster 2", "road", "cluster 4"]
    session.merge(2, 3)  # 2 has no name: it takes that of 3, and so does all that is merged with it
    assert stored(session) == ["road", None, "road", "road", "cluster 4"]
    session.rename(2, "")
    session.make_void(1, False)
    assert stored(session) == ["road", "cluster 1", "cluster 2", "road", "cluster 4"]


def test_a_merge_takes_everything_that_the_second_was_merged_with(session):
    session.rename(0, "car")
    session.rename(1, "bus")
    session.rename(2, "bus")
    session.merge(0, 1)
    assert stored(session) == ["car", "car", "car", "cluster 3", "cluster 4"]
    session.merge(3, 4)
    assert stored(session)[3:] == ["cluster 3", "cluster 3"] and len(session.legend.names) == 2


def test_every_change_can_be_taken_back_until_nothing_is_left(session):
    session.rename(0, "road")
    session.make_void(0)
    session.merge(1, 2)
    session.rename(1, "cluster 1")  # what it is called already: no change to take back
    states = []
    while session.undo():
        states.append(stored(session))
    assert states == [[None, *NAMES[1:]], ["road", *NAMES[1:]], None]
    assert not (session.run / FILE).exists()


def test_a_later_session_goes_on_with_what_is_there(session):
    session.rename(0, "road")
    session.rename(4, "road")
    session.make_void(2)
    session.colours["road"] = (1, 2, 3)
    session.rename(1, "sky")
    later = Session(session.run, NAMES, "0a", read_legend(session.run, NAMES, "0a"))
    assert later.given == {0: "road", 4: "road", 2: None, 1: "sky"}
    later.rename(3, "tree")
    assert read_legend(session.run, NAMES, "0a").colours == {"road": (1, 2, 3)}
    later.rename(0, "")
    later.rename(4, "")
    assert read_legend(session.run, NAMES, "0a").colours == {}, "a colour without a cluster is dropped"


def test_what_is_refused_changes_nothing(session, monkeypatch):
    session.rename(0, "road")
    with pytest.raises(ValueError, match="one line of 1 to 100"):
        session.rename(1, "a\nb")
    for number in range(1, 5):
        session.make_void(number)
    with pytest.raises(ValueError, match="every cluster is void"):
        session.make_void(0)
    monkeypatch.setattr("depthg.labelling.session.write_legend", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        session.rename(0, "street")
    assert stored(session) == ["road", None, None, None, None] and session.given[0] == "road"
    monkeypatch.undo()
    assert session.undo() and stored(session)[4] == "cluster 4"


def test_suggestions_that_are_settled_are_not_shown(session):
    pairs = [Suggestion(0, 1, 0.9, 0.5), Suggestion(1, 2, 0.8, 0.5), Suggestion(3, 4, 0.7, 0.5)]
    session.merge(0, 1)
    session.make_void(4)
    assert session.open_suggestions(pairs) == [pairs[1]]
