"""The page for naming clusters: what it shows and does, without a browser; and in one, where Chromium is here."""

import re
import shutil

import numpy as np
import pytest

from depthg.data.photos import find_photos
from depthg.inference.segmenter import Segmenter
from depthg.labelling.opening import survey
from depthg.labelling.session import Session
from depthg.model.legend import FILE, checksum_of, read_legend

gr = pytest.importorskip("gradio", reason="gradio is not installed")
from depthg.labelling.page import LabelPage  # noqa: E402


@pytest.fixture
def page(shared_tree, shared_run, tmp_path):
    segmenter = Segmenter.load(shared_run, legend=False)
    run = segmenter.run
    found, failed = survey(segmenter, find_photos([str(shared_tree / "train")], tmp_path)[0], segmenter.colours)
    assert not failed
    session = Session(tmp_path, run.cluster_names, checksum_of(run.cluster.centroids))
    return LabelPage(session, segmenter, found, segmenter.colours)


def values(page):
    """The state line, labels of the visible suggestions, names and void marks."""
    state, n, k = page._state(), len(page.order), len(page.suggestions)
    shown = [button.value for button in state[1 : 1 + k] if button.visible]
    return state[0], shown, state[1 + k : 1 + k + n], state[1 + k + n :]


def test_clusters_that_occur_have_a_row_the_largest_first(page):
    assert page.order and len(page.names) == len(page.voids) == len(page.order) <= page.segmenter.run.n_clusters
    shares = [float(share) for share in re.findall(r"</b> ([\d.]+) %", str(page.blocks.get_config_file()))]
    assert len(shares) == len(page.order) and shares == sorted(shares, reverse=True)
    assert "data:image/jpeg;base64," in str(page.blocks.get_config_file())


def test_names_void_and_merges_show_in_the_state(page):
    first, second = page.order[:2]
    page._rename(first, "road")
    page.session.make_void(second)
    line, _, names, voids = values(page)
    n = page.segmenter.run.n_clusters
    assert line == f"**{n - 1} classes** of {n} clusters, 1 void"
    assert names[:2] == ["road", ""] and voids[:2] == [False, True]
    page._rename(second, " ")  # leaving the empty field of a void cluster is no change
    page._rename(first, "road ")
    assert values(page)[2:] == (names, voids) and page.session.undo() and not any(values(page)[3])


def test_a_suggestion_goes_when_it_is_taken(page):
    assert page.suggestions, "the miniature run has clusters that touch and are alike"
    pair, before = page.suggestions[0], values(page)[1]
    page.session.merge(pair.one, pair.other)
    assert before[0] not in values(page)[1] and len(values(page)[1]) < len(before)


def test_a_photo_is_segmented_under_the_names(page, shared_tree, tmp_path):
    photo = next((shared_tree / "val").glob("*.png"))
    plain = page._segment(str(photo))
    page.session.make_void(page.order[0])
    assert plain.dtype == np.uint8 and plain.shape[2] == 3 and (page._segment(str(photo)) != plain).any()
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(gr.Error, match="the photo"):
        page._segment(str(tmp_path / "text.png"))


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1200, 390])
def test_in_a_browser_names_are_kept_and_a_photo_is_segmented(served, shared_tree, width):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    run, address, _ = served
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, errors, hosts = browser.new_page(viewport={"width": width, "height": 900}), [], set()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: hosts.add(re.sub(r"^(\w+://[^/]*).*", r"\1", request.url)))
        page.goto(address)
        page.wait_for_selector("#status >> text=classes", timeout=120_000)
        assert "token" not in page.url and page.evaluate("document.documentElement.scrollWidth") <= width
        boxes = page.locator("input[placeholder=name], textarea[placeholder=name]")
        for box in (boxes.nth(0), boxes.nth(1)):
            box.fill("road <b>")
            box.press("Enter")
        run_read = Segmenter.load(run).run
        page.wait_for_selector(f"#status >> text={run_read.n_clusters - 1} classes", timeout=60_000)
        stored = read_legend(run, run_read.cluster_names, checksum_of(run_read.cluster.centroids))
        assert "road <b>" in stored.names and len(stored.names) == run_read.n_clusters - 1
        page.get_by_role("button", name="Undo").click()
        page.wait_for_selector(f"#status >> text={run_read.n_clusters} classes", timeout=60_000)
        page.get_by_role("tab", name="A photo").click()
        page.set_input_files("input[type=file]", str(next((shared_tree / "val").glob("*.png"))))
        page.wait_for_selector("img[src*='gradio_api/file']", timeout=120_000)
        browser.close()
    assert not errors and hosts - {"data:"} <= {re.sub(r"/\?.*", "", address)}, (errors, hosts)
    assert (run / FILE).is_file()
