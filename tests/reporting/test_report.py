"""The report: one file, nothing from elsewhere, everything escaped, whatever part of a run is there."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from PIL import Image

from depthg.inference.read_outs import READ_OUTS
from depthg.report import main
from depthg.reporting.report import write_report
from depthg.reporting.run_files import protocol_words

CLASSES = ["sky", "road & <b>path</b>", "car"]
NASTY = "<script>alert('x')</script>"
VOID_TAGS = {"meta", "img", "source", "br"}


class Page(HTMLParser):
    """Text, tags and addresses of a page; unbalanced tags fail."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.addresses, self.words, self.alts = [], [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID_TAGS:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "srcset", "href", "action", "data"):
                self.addresses.append(value)
            if name == "alt":
                self.alts.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def scores():
    metrics = {"per_class": {key: dict(zip(CLASSES, (90.0, 40.5, None), strict=True)) for key in READ_OUTS}}
    for i, key in enumerate(READ_OUTS):
        metrics |= {f"{key}.accuracy": 80.04 - 5 * i, f"{key}.miou": 50.0 - 5 * i}
    return metrics


def full_metrics():
    protocol = {
        "split": "val", "resolution": [224, 288], "crop": "none", "flip": False, "crf": False, "checkpoint": "last",
        "seed": 3, "mode": "paper", "probe_reinit": 250, "shifts": [0.1, 0.2],
    }  # fmt: skip
    return scores() | {
        "protocol": protocol,
        "seconds": {"prepare": 30.0, "train": 60.0, "total": 90.0},
        "confusion": [[5, 1, 0], [0, 4, 1], [0, 0, 0]],
        "classes": CLASSES,
        "environment": {"torch": "2.13.0", "device": NASTY},
    }


def make_run(path, *, metrics=None, config=None, records=None, panels=0):
    path.mkdir(parents=True)
    if metrics is not None:
        (path / "metrics.json").write_text(json.dumps(metrics))
    if config is not None:
        (path / "config.yaml").write_text(yaml.safe_dump(config))
    if records is not None:
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
    for i in range(panels):
        (path / "panels").mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), i, np.uint8)).save(path / "panels" / f"{i:02d}.png")
    return path


def full_run(path, panels=3):
    records = [{"iteration": i, "loss": -0.01 * i, "loss.self": -0.1} for i in range(0, 40, 10)]
    records += [{"iteration": i, "cluster.accuracy": 60.0, "cluster.miou": 30.0} for i in (20, 30)]
    config = {
        "data": {"name": "scenes"}, "backbone": {"name": "net"}, "iterations": 40, "seed": 3, "name": NASTY,
        "loss": {"depth": {"weight": 0.2, "relation": "normals"}, "self": {"shift": [0.1, 0.2]}},
        "depth": {"source": "dataset"}, "resume": None, "overwrite": False,
    }  # fmt: skip
    return make_run(path, metrics=full_metrics(), config=config, records=records, panels=panels)


def test_a_full_run_shows_every_part(drawn_figures, tmp_path):
    path = write_report(full_run(tmp_path / "my-run"))
    assert path == tmp_path / "my-run" / "report.html"
    page = Page(path)
    headings = ("my-run", "Protocol", "Pictures", "Scores", "Classes", "Curves", "Time", "Settings", "Environment")
    subtitle = "scenes · net · depth relation normals · 40 iterations · seed 3"
    numbers = ("80.0", "+20.0 over k-means on raw features", "k-means on codes", "60.0 s")
    settings = ("depth.relation normals", "overwrite no", "self.shift 0.1, 0.2")
    for part in (*headings, subtitle, *numbers, *settings):
        assert part in page.text, part
    assert page.alts.count("IoU per class") == page.alts.count("Confusion of the cluster probe") == 1
    assert {"Loss", "Loss terms, unweighted", "Validation accuracy (%)"} <= set(page.alts)


def test_the_page_is_self_contained_and_escaped(drawn_figures, tmp_path):
    run = full_run(tmp_path / "a<b>&run")
    page = Page(write_report(run))
    assert page.addresses and all(address.startswith("data:image/") for address in page.addresses)
    assert not {"script", "link", "iframe", "b>path", "style>"} & set(page.tags) and page.tags.count("style") == 1
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html and "@import" not in html and "url(" not in html
    assert "default-src 'none'" in html
    for shown in (NASTY, "road & <b>path</b>", "a<b>&run"):
        assert shown in page.text
    for address in page.addresses:
        base64.b64decode(address.split(",", 1)[1], validate=True)


def test_figures_come_in_light_and_dark(drawn_figures, tmp_path):
    html = write_report(full_run(tmp_path / "run")).read_text()
    pairs = re.findall(r'<source media="\(prefers-color-scheme: dark\)" srcset="([^"]+)"><img src="([^"]+)"', html)
    assert len(pairs) == 6
    assert all(dark != light for dark, light in pairs)


def test_panels_are_the_files_of_the_run(tmp_path):
    run = full_run(tmp_path / "run")
    page = Page(write_report(run))
    for path in (run / "panels").glob("*.png"):
        assert "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() in page.addresses
    assert "1 more" in page.text
    many = Page(write_report(make_run(tmp_path / "many", panels=15)))
    assert sum(a.startswith("data:image/png") for a in many.addresses) == 12 and "3 further sheets" in many.text


def test_best_median_and_worst_sheets_are_named_in_this_order_and_all_open(tmp_path):
    run = full_run(tmp_path / "run", panels=0)
    (run / "panels").mkdir()
    for name in ("worst", "best", "median"):
        Image.new("RGB", (4, 6)).save(run / "panels" / f"{name}.png")
    (run / "images.csv").write_text("name,accuracy,miou\na,50.0,20.0\nb,60.0,30.0\nc,,\nd,70.0,40.0\n")
    page = Page(write_report(run))
    places = [page.text.index(title) for title in ("Best images", "Images around the median", "Worst images")]
    assert places == sorted(places) and "more" not in page.text
    assert "over 3 images: median 30, eight in ten between 22 and 38" in page.text
    (run / "images.csv").write_text("name,accuracy\na,50.0\n")
    with pytest.raises(ValueError, match=r"images\.csv is damaged"):
        write_report(run)


def test_evaluations_stand_with_their_protocol_and_intervals(tmp_path):
    entry = {
        "protocol": "x val, 3 images; flip; CRF", "cluster.accuracy": 61.25, "cluster.miou": 20.0,
        "cluster.intervals": {"accuracy": [60.0, 62.0], "miou": [18.0, 22.5]}, "linear.accuracy": 70.0,
    }  # fmt: skip
    clusters_only = {"protocol": "no labels here", "shares": {"cluster": [1.0]}}
    metrics = full_metrics() | {"evaluations": [entry, clusters_only]}
    page = Page(write_report(make_run(tmp_path / "run", metrics=metrics)))
    for part in (
        "Evaluations",
        "x val, 3 images; flip; CRF",
        "Cluster probe 61.2 60.0 to 62.0 20.0 18.0 to 22.5",
        "Linear probe 70.0 \u2013",
    ):
        assert part in page.text, part
    assert "no labels here" not in page.text


def test_peak_memory_is_shown(tmp_path):
    metrics = full_metrics() | {"memory": {"resident_mib": 1536, "gpu_mib": 512}}
    page = Page(write_report(make_run(tmp_path / "run", metrics=metrics)))
    assert "At most 1.50 GiB of memory (resident, with mapped files) and 0.50 GiB on the GPU." in page.text


def test_a_run_without_labels_has_no_scores_and_no_nan(drawn_figures, tmp_path):
    records = [{"iteration": i, "loss": -0.1 * i} for i in range(3)]
    metrics = {key: full_metrics()[key] for key in ("protocol", "seconds", "environment")} | {"classes": []}
    config = {"iterations": 500, "n_classes": 8}
    run = make_run(tmp_path / "run", metrics=metrics, config=config, records=records, panels=1)
    page = Page(write_report(run))
    assert "no labels" in page.text and "Clusters 8" in page.text and "Loss −0.200" in page.text  # noqa: RUF001
    places = [page.text.index(part) for part in ("no labels", "Pictures", "Curves", "Iterations", "Loss", "Protocol")]
    assert places == sorted(places), "pictures come first"
    assert "Scores" not in page.text and "Classes" not in page.text and "nan" not in page.text.lower()


@pytest.mark.parametrize("absent", ["config.yaml", "metrics.jsonl", "metrics.json", "panels"])
def test_any_part_may_be_absent(tmp_path, absent):
    run = full_run(tmp_path / "run")
    if absent == "panels":
        for path in (run / "panels").iterdir():
            path.unlink()
    else:
        (run / absent).unlink()
    page = Page(write_report(run))
    gone = {"config.yaml": "Settings", "metrics.jsonl": "Curves", "metrics.json": "Scores", "panels": "Pictures"}[
        absent
    ]
    assert gone not in page.text
    assert all(part in page.text for part in {"Settings", "Curves", "Pictures"} - {gone})


@pytest.mark.parametrize(
    "key", ["protocol", "seconds", "confusion", "classes", "environment", "per_class", "linear.miou"]
)
def test_any_metric_may_be_absent_or_null(tmp_path, key):
    for number, change in enumerate((lambda m: m.pop(key), lambda m: m.update({key: None}))):
        metrics = full_metrics()
        change(metrics)
        page = Page(write_report(make_run(tmp_path / f"run{number}", metrics=metrics)))
        assert "80.0" in page.text and "None" not in page.text


def test_an_interrupted_run_shows_how_far_it_is(tmp_path):
    run = make_run(tmp_path / "run", config={"iterations": 500}, records=[{"iteration": 120, "loss": 0.5}])
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 130, "lo')
    page = Page(write_report(run))
    assert "not been evaluated yet" in page.text and "120 of 500" in page.text


def test_scores_below_the_baseline_say_so(tmp_path):
    metrics = scores() | {"cluster.accuracy": 55.0}
    assert "5.0 below k-means on raw features" in Page(write_report(make_run(tmp_path / "run", metrics=metrics))).text


def test_values_that_are_no_numbers_are_dashes(tmp_path):
    metrics = scores() | {"cluster.miou": float("nan"), "linear.accuracy": "high"}
    page = Page(write_report(make_run(tmp_path / "run", metrics=metrics)))
    assert "Cluster mIoU" not in page.text and "–" in page.text and "nan" not in page.text  # noqa: RUF001


def test_a_matrix_that_does_not_fit_falls_back_to_the_picture(tmp_path):
    run = make_run(tmp_path / "run", metrics=full_metrics() | {"confusion": [[1, 2], [3]]}, panels=1)
    assert "Confusion matrix" not in Page(write_report(run)).alts
    (run / "panels" / "00.png").rename(run / "confusion.png")
    assert "Confusion matrix" in Page(write_report(run)).alts


def test_protocol_in_words():
    parts = protocol_words(full_metrics()["protocol"])
    assert parts == [
        "val split", "224 × 288 px", "no crop", "no flip", "no CRF", "last checkpoint", "mode paper", "seed 3",  # noqa: RUF001
        "cluster probe restarted at iteration 250", "shifts 0.1, 0.2",
    ]  # fmt: skip
    other = {"flip": True, "crf": True, "crop": "center", "probe_reinit": 0, "matching": "hungarian"}
    assert protocol_words({"crop": "centre crop"}) == ["centre crop"]
    assert protocol_words(other) == [
        "crop center", "flip averaging", "CRF", "cluster probe never restarted", "matching hungarian"
    ]  # fmt: skip


def test_folders_that_are_no_run_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; pass the folder of a run"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has none of config\.yaml"):
        write_report(tmp_path)
    for name, content, message in (
        ("metrics.json", '{"a": ', "metrics.json is damaged"),
        ("metrics.json", "[1]", "metrics.json holds a list"),
        ("config.yaml", "a: [", "config.yaml is damaged"),
        ("config.yaml", "!!python/object/apply:os.system ['true']", "config.yaml is damaged"),
    ):
        run = make_run(tmp_path / f"{name}{len(content)}")
        (run / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            write_report(run)
        assert not (run / "report.html").exists()


@pytest.mark.parametrize("change", [{"protocol": [1]}, {"evaluations": [7]}])
def test_values_of_another_kind_are_damage(tmp_path, capsys, change):
    run = full_run(tmp_path / "run")
    path = run / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert main([str(run)]) == 1
    assert f"error: {path} is damaged" in capsys.readouterr().err


def test_command_line_rebuilds_a_report(tmp_path, capsys):
    run = full_run(tmp_path / "run")
    (run / "report.html").write_text("old")
    assert main([str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert "old" != (run / "report.html").read_text()
    assert main([str(tmp_path / "nowhere")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_another_file_is_written_only_where_nothing_is(tmp_path, capsys):
    run, out = full_run(tmp_path / "run"), tmp_path / "new" / "page.html"
    assert main([str(run), "--out", str(out)]) == 0
    assert "Protocol" in out.read_text() and not (run / "report.html").exists()
    out.write_text("mine")
    assert main([str(run), "--out", str(out)]) == 1
    assert out.read_text() == "mine" and "--overwrite" in capsys.readouterr().err
    assert main([str(run), "--out", str(out), "--overwrite"]) == 0 and out.read_text() != "mine"
    assert main([str(run), "--out", "/proc/none/page.html"]) == 1
    assert "cannot write in /proc/none" in capsys.readouterr().err
    assert main([str(run)] * 3) == 1 and "got 3" in capsys.readouterr().err


def test_sheets_are_never_enlarged_and_a_broken_one_is_named(tmp_path):
    run = make_run(tmp_path / "run", panels=1)
    Image.new("RGB", (1000, 20)).save(run / "panels" / "00.png")
    assert 'style="max-width:1000px;min-width:560px"' in write_report(run).read_text()
    assert "Swipe" in write_report(run).read_text() and "max-width: 800px" in write_report(run).read_text()
    (run / "panels" / "narrow").mkdir()
    Image.new("RGB", (500, 40)).save(run / "panels" / "narrow" / "00.png")
    page = write_report(run).read_text()
    narrow = base64.b64encode((run / "panels" / "narrow" / "00.png").read_bytes()).decode()
    assert f'<source media="(max-width: 800px)" srcset="data:image/png;base64,{narrow}">' in page
    assert "Swipe" not in page and 'class="wide sheet two"' in page
    (run / "panels" / "01.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"01\.png is not a readable picture"):
        write_report(run)
