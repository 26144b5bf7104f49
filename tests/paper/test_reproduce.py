"""Tables: the paper's figures, the settings of every row, what is run again and what not, and how ours are written."""

import csv
import io
import json
import re

import pytest
from miniature import write_camvid

import depthg.evaluate
import depthg.paper.reproduction
import depthg.paper.runs
from depthg.config.composing import load_config
from depthg.model.checkpoints import read_checkpoint
from depthg.model.run_folder import read_log
from depthg.paper.reproduction import choose_rows, choose_table, default_out, plan, settings_of, split_arguments
from depthg.paper.runs import Job, check_folder, commands, quoted, result_of, run_command, run_job
from depthg.paper.tables import PaperTable, Result, Row, csv_text, markdown, paper_tables
from depthg.reproduce import main
from depthg.train import train

TINY = [
    "data=camvid", "data.size=[64,64]", "data.eval_size=[64,64]", "depth.source=folder", "backbone.pca=16",
    "batch_size=6", "iterations=6", "sampling.points=4", "head.dim=8", "probe.reinit=0", "val.kmeans_samples=200",
    "loss.shifts=fixed", "sampling.start=first", "val.every=3", "val.panels=0", "depth.mapping=saturating",
]  # fmt: skip


@pytest.fixture
def tiny(tmp_path):
    """Arguments for a table on a miniature CamVid, and the output folder."""
    root = write_camvid(tmp_path / "camvid")
    out = tmp_path / "out, with space"
    places = [f"data.root={root}", f"depth.root={root / 'depth'}", f"cache.dir={tmp_path / 'cache'}"]
    return ["table4", *TINY, *places, "--out", str(out)], out


@pytest.fixture
def in_process(monkeypatch):
    """Commands run here instead of in processes of their own; returns the list of what was run."""
    done = []

    def run(command):
        done.append(command[2:])
        if command[2] == "depthg.train":
            train(load_config(command[3:]))
        elif depthg.evaluate.main(command[3:]):
            raise RuntimeError("evaluate failed")

    monkeypatch.setattr(depthg.paper.runs, "run_command", run)
    return done


# ---- the paper


def test_figures_of_the_paper():
    tables = paper_tables()
    found = {(name, row.method, row.model): list(row.paper.values()) for name, t in tables.items() for row in t.rows}
    for key, figures in {
        ("table1", "STEGO", "ViT-S/8"): [48.3, 24.5, 74.4, 38.3],
        ("table1", "STEGO + HP", "ViT-S/8"): [57.2, 24.6, 75.6, 42.7],
        ("table1", "STEGO + DepthG", "ViT-S/8"): [56.3, 25.6, 73.7, 38.9],
        ("table1", "DINO", "ViT-B/8"): [42.2, 13.0, 75.8, 44.4],
        ("table1", "DINOSAUR", "ViT-B/8"): [44.9, 24.0, None, None],
        ("table1", "STEGO", "ViT-B/8"): [56.9, 28.2, 76.1, 41.0],
        ("table1", "STEGO + DepthG", "ViT-B/8"): [58.6, 29.0, 75.5, 41.6],
        ("table2", "STEGO", "ViT-B/8"): [73.2, 21.0],
        ("table2", "STEGO + HP", "ViT-B/8"): [79.5, 18.4],
        ("table2", "STEGO + DepthG", "ViT-B/8"): [81.6, 23.1],
        ("table3", "STEGO", "ViT-B/8"): [77.0],
        ("table3", "STEGO + HP", "ViT-B/8"): [82.4],
        ("table3", "STEGO + DepthG", "ViT-B/8"): [80.4],
        ("table4", "STEGO", "ViT-S/8"): [48.3, 24.5],  # the headers of the paper's table are swapped
        ("table4", "+ depth-feature correlation", "ViT-S/8"): [51.2, 24.7],
        ("table4", "+ both", "ViT-S/8"): [56.3, 25.6],
    }.items():
        assert found[key] == figures, key
    assert [len(tables[f"table{n}"].rows) for n in (1, 2, 3, 4)] == [10, 5, 4, 5]


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "table4"])
@pytest.mark.parametrize("mode", ["paper", pytest.param("released", marks=pytest.mark.slow)])
def test_every_row_of_the_paper_composes(name, mode, tmp_path):
    table = choose_table(name, [])
    jobs = plan(table, choose_rows(table, []), [f"mode={mode}"], [3, 1], tmp_path, "flip-crf", None)
    assert len(jobs) == 2 * len({job.row for job in jobs}) and len({job.folder for job in jobs}) == len(jobs)
    for job in jobs[::2]:
        config = load_config(job.overrides)
        trained = not job.row.startswith("dino")
        assert (config.mode, config.seed, config.val.every) == (mode, job.seed, 100)
        assert config.checkpoint.rule == ("both" if trained else "last")
        assert job.checkpoints == (("last", "best") if trained else ("last",))
        assert job.protocol == ("flip-crf" if trained else "flip"), "k-means is not refined by the CRF"
        assert job.evaluation == f"{config.data.name}-val-320x320" and job.kmeans == (not trained)


def row_configs(overrides):
    table = choose_table("table4", overrides)
    return {row.row: load_config(settings_of(table, row, overrides)) for row in choose_rows(table, [])}


@pytest.mark.parametrize("data", [["data=scenes"], ["data=camvid", "data.root=x"], []])
def test_rows_of_the_ablation_are_the_contributions(data):
    configs = row_configs(data)
    assert list(configs) == ["stego", "depth", "fps", "both", "constant"]
    term = {name: config.loss.depth.weight > 0 and config.depth.source != "none" for name, config in configs.items()}
    points = {name: config.sampling.method for name, config in configs.items()}
    assert term == {"stego": False, "depth": True, "fps": False, "both": True, "constant": True}
    assert points == {"stego": "random", "depth": "random", "fps": "fps", "both": "fps", "constant": "fps"}
    assert [config.loss.depth.relation for config in configs.values()][1:] == ["product"] * 3 + ["unit"]
    depth = [config.loss.depth for name, config in configs.items() if term[name]]
    assert {(d.weight, d.shift, d.factor, d.every, d.shift_mean) for d in depth} == {(0.19, 0.03, 0.6, 250, False)}
    if data == ["data=camvid", "data.root=x"]:
        assert {config.depth.source for config in configs.values()} == {"ground_plane"}
    if data:
        assert len({(c.iterations, c.loss.shifts, c.head.dim, c.data.name) for c in configs.values()}) == 1


def test_the_users_settings_hold_but_for_what_a_row_is_about():
    given = ["data=scenes", "loss.depth.weight=0.5", "loss.depth.relation=normals", "sampling=fps", "iterations=7"]
    configs = row_configs(given)
    assert {config.iterations for config in configs.values()} == {7}
    assert [config.loss.depth.weight for config in configs.values()] == [0, 0.5, 0, 0.5, 0.5]
    assert [configs[name].loss.depth.relation for name in ("depth", "both", "constant")] == ["normals"] * 2 + ["unit"]
    assert configs["stego"].sampling.method == "random"
    assert row_configs(["data=scenes", "experiment=camvid"])["both"].probe.reinit == 0.5


# ---- what is run


def test_a_table_is_run_once_and_the_files_hold_its_numbers(tiny, in_process, capsys):
    arguments, out = tiny
    arguments += ["--rows", "stego", "both", "--seeds", "0", "1"]
    assert main(arguments) == 0
    assert [command[0] for command in in_process] == ["depthg.train"] * 4
    printed = capsys.readouterr().out
    text = (out / "table4.md").read_text()
    assert text in printed and "data: camvid" in text and "split: val" in text
    scores = [json.loads((out / f"both-seed{seed}" / "metrics.json").read_text())["cluster.miou"] for seed in (0, 1)]
    logs = [read_log(out / f"both-seed{seed}" / "metrics.jsonl") for seed in (0, 1)]
    best = [max(line["cluster.miou"] for line in log if "cluster.miou" in line) for log in logs]
    rows = list(csv.DictReader(io.StringIO((out / "table4.csv").read_text())))
    for source, expected in (("last", scores), ("best", best)):
        mine = {row["seed"]: row for row in rows if (row["row"], row["source"]) == ("both", source)}
        assert [float(mine[str(seed)]["cluster.miou"]) for seed in (0, 1)] == pytest.approx(expected, abs=1e-3)
        assert float(mine["mean"]["cluster.miou"]) == pytest.approx(sum(expected) / 2, abs=1e-3)
        assert float(mine["std"]["cluster.miou"]) == pytest.approx(abs(expected[0] - expected[1]) / 2**0.5, abs=1e-3)
    in_process.clear()
    assert main(arguments) == 0 and not in_process
    assert "finished before" in capsys.readouterr().out
    assert (out / "table4.md").read_text() == text


def test_stopped_runs_go_on_and_changed_settings_are_refused(tiny, in_process, capsys):
    arguments, out = tiny
    arguments += ["--rows", "both", "--seeds", "0"]
    assert main(arguments) == 0
    (out / "both-seed0" / "metrics.json").unlink()
    in_process.clear()
    assert main([*arguments, "data.workers=1"]) == 0  # which changes no number
    assert in_process == [["depthg.train", f"resume={out / 'both-seed0'}"]]
    capsys.readouterr()
    assert main([*arguments, "head.lr=0.1"]) == 1
    message = capsys.readouterr().err
    assert "head.lr=0.0005" in message and "head.lr=0.1" in message and "--overwrite" in message
    before = read_checkpoint(out / "both-seed0" / "checkpoints" / "last")[0]["model.head.linear.weight"]
    assert main([*arguments, "head.lr=0.1", "--overwrite"]) == 0
    after = read_checkpoint(out / "both-seed0" / "checkpoints" / "last")[0]["model.head.linear.weight"]
    assert not before.equal(after)


@pytest.mark.slow
def test_other_splits_and_test_times_are_evaluated_per_checkpoint(tiny, in_process):
    arguments, out = tiny
    arguments += ["--rows", "both", "--seeds", "0", "--protocol", "flip"]
    assert main(arguments) == 0
    assert [command[0] for command in in_process] == ["depthg.train", "depthg.evaluate", "depthg.evaluate"]
    found = {}
    for checkpoint in ("last", "best"):
        path = out / "both-seed0" / "evaluations" / f"camvid-val-64x64-flip-{checkpoint}.json"
        found[checkpoint] = json.loads(path.read_text())
        assert found[checkpoint]["protocol"]["flip"] is True
        assert found[checkpoint]["protocol"]["checkpoint"] == checkpoint
    rows = list(csv.DictReader(io.StringIO((out / "table4.csv").read_text())))
    for checkpoint, content in found.items():
        own = next(row for row in rows if (row["source"], row["seed"]) == (checkpoint, "0"))
        assert float(own["cluster.accuracy"]) == content["results"]["cluster"]["accuracy"]
        assert float(own["kmeans_codes.miou"]) == content["results"]["kmeans_codes"]["miou"]
    in_process.clear()
    assert main(arguments) == 0 and not in_process


def test_a_failing_row_is_reported_and_the_others_go_on(tiny, in_process, capsys, monkeypatch):
    arguments, out = tiny
    works = depthg.paper.runs.run_command

    def fails(command):
        if any("depth-seed0" in part for part in command):
            raise RuntimeError("train: killed by signal 9")
        works(command)

    monkeypatch.setattr(depthg.paper.runs, "run_command", fails)
    arguments += ["--rows", "depth", "both", "--seeds", "0", "val.every=0"]
    assert main(arguments) == 1
    text = (out / "table4.md").read_text()
    assert "**Failed**: depth, seed 0: train: killed by signal 9" in text and "| + both | last | 0 |" in text
    assert "| best |" not in text, "without val.every there is no best checkpoint"
    rows = list(csv.DictReader(io.StringIO((out / "table4.csv").read_text())))
    assert [row["error"] for row in rows if row["row"] == "depth"] == ["train: killed by signal 9"]
    monkeypatch.setattr(depthg.paper.runs, "run_command", works)
    assert main(arguments) == 0
    assert "Failed" not in (out / "table4.md").read_text()


def test_labels_missing_is_said(tmp_path, in_process):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text('{"classes": [], "protocol": {}}')
    assert "no labels" in result_of(Job("both", 0, tmp_path / "run", ())).error
    assert "no last numbers" in result_of(Job("both", 0, tmp_path / "nothing", ())).error


def test_processes_report_their_last_line(tmp_path, monkeypatch):
    python = depthg.paper.runs.sys.executable
    run_command([python, "-c", "print('fine')"])
    with pytest.raises(RuntimeError, match=r"^print.*: broken file$"):
        run_command([python, "-c", "print; import sys; sys.exit('error: broken file')"])
    with pytest.raises(RuntimeError, match="killed by signal 9"):
        run_command([python, "-c", "import os; os.kill(os.getpid(), 9)"])
    with pytest.raises(KeyboardInterrupt):
        run_command([python, "-c", "raise SystemExit(130)"])
    job, where = Job("row", 0, tmp_path / "row-seed0", ("device=tpu9",)), f"runs_dir={tmp_path}"
    monkeypatch.setattr(
        depthg.paper.runs, "commands", lambda *_: [[python, "-m", "depthg.train", "device=tpu9", where]]
    )
    assert "train: device='tpu9'" in run_job(job)
    assert "device='tpu9'" in (tmp_path / "errors" / "row-seed0.txt").read_text()
    assert not job.folder.exists()


def test_folders_of_something_else_are_left_alone(tmp_path):
    job = Job("row", 0, tmp_path / "row-seed0", ("experiment=demo",))
    check_folder(job, overwrite=False)
    job.folder.mkdir()
    check_folder(job, overwrite=False)
    (job.folder / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="no run"):
        check_folder(job, overwrite=False)


def test_paths_are_quoted_for_hydra(tmp_path):
    strange = tmp_path / "a b, 'c'=d"
    assert load_config([f"runs_dir={quoted(strange)}"]).runs_dir == str(strange)


# ---- tables


TABLE = PaperTable(
    "table9", "Test", ("cluster.accuracy", "cluster.miou", "linear.miou"),
    (
        Row("a", "A", "S/8", {"cluster.accuracy": 50.0, "cluster.miou": 20.0, "linear.miou": None}, "a"),
        Row("b", "B", "S/8", {}, "b", read_out="kmeans_features", note="nothing is trained"),
        Row("c", "C", "S/8", {"cluster.accuracy": 1.0, "cluster.miou": 2.0, "linear.miou": 3.0}),
    ),
)  # fmt: skip


def metrics(accuracy, **protocol):
    base = {"data": "x", "seed": 0, "checkpoint": "last", "crf": False}
    return {
        "cluster.accuracy": accuracy, "cluster.miou": accuracy / 2, "linear.miou": 1.0,
        "kmeans_features.accuracy": 7.0, "kmeans_features.miou": 6.0, "protocol": base | protocol,
    }  # fmt: skip


def test_markdown_has_means_spreads_and_protocols():
    results = [
        Result("a", 0, "f0", {"last": metrics(50.0), "best": metrics(52.0, checkpoint="best", data="unlike")}),
        Result("a", 1, "f1", {"last": metrics(53.0)}),
        Result("b", 0, "g", {"last": metrics(1.0, crf=True)}),
        Result("b", 1, "h", error="out of memory"),
    ]
    text = markdown(TABLE, results, "python -m depthg.reproduce table9")
    lines = text.splitlines()
    assert "| method | model | source | seeds | clusters: accuracy | mIoU | linear probe: mIoU |" in lines
    assert "| A | S/8 | paper |  | 50.0 | 20.0 | – |" in lines  # noqa: RUF001
    assert "|  |  | ours, last | 0, 1 | 51.5 ± 2.1 | 25.8 ± 1.1 | 1.0 ± 0.0 |" in lines
    assert "|  |  | ours, best | 0 | 52.0 | 26.0 | 1.0 |" in lines
    assert "| B | S/8 | ours, last | 0 | 7.0 | 6.0 | – |" in lines, "read from k-means; no linear probe"  # noqa: RUF001
    assert "| C | S/8 | paper |  | 1.0 | 2.0 | 3.0 |" in lines
    assert "- Protocol of ours: data: x." in lines
    assert "- A, S/8: crf: false." in lines and "- B, S/8: crf: true." in lines
    assert "- B: nothing is trained." in lines and "- **Failed**: b, seed 1: out of memory" in lines
    assert "`python -m depthg.reproduce table9`" in text and "picked by the cluster probe's mIoU" in text
    assert "picked by" not in markdown(TABLE, results[1:]) and "Protocol" not in markdown(TABLE, [])


def test_csv_has_a_line_per_seed_and_full_precision():
    results = [Result("a", n, f"f{n}", {"last": metrics(value)}) for n, value in enumerate((50.0, 51.0, 53.125))]
    rows = list(csv.DictReader(io.StringIO(csv_text(TABLE, results))))
    assert [(r["row"], r["source"], r["seed"]) for r in rows] == [
        ("a", "paper", ""), *(("a", "last", seed) for seed in ("0", "1", "2", "mean", "std")), ("c", "paper", "")
    ]  # fmt: skip
    assert rows[3]["cluster.accuracy"] == "53.125" and rows[3]["folder"] == "f2"
    assert float(rows[4]["cluster.accuracy"]) == pytest.approx(51.375)
    assert float(rows[5]["cluster.accuracy"]) == pytest.approx(1.5961, abs=1e-3)
    assert rows[0]["linear.miou"] == ""


# ---- command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table5"], "unknown table 'table5'; choose one of table1, table2, table3, table4"),
        (["tabel4"], "did you mean 'table4'?"),
        (["table1", "data=scenes"], "table1 is about COCO-Stuff-27"),
        (["table4", "--rows", "stegoo"], "unknown row 'stegoo'; rows of this table: stego, depth, fps, both, constant"),
        (["table4", "data=scenes", "seed=3"], "use --seeds"),
        (["table4", "data=scenes", "name=x"], "use --out"),
        (["table1", "experiment=demo"], "experiment is chosen by this command"),
        (["table4", "data=scenes", "iteratoins=3"], "did you mean 'iterations'?"),
        (["table4", "data=scenes", "iterations=-3"], "out of range"),
        (["table4", "data=scenes", "--seeds", "a"], "whole numbers"),
        (["table4", "data=voc2012", "data.root=x"], "needs depth"),
        (["table4", "data=scenes", "hydra/launcher=joblib"], "depthg.train --multirun"),
        (["table1", "backbone.weights=x.pth", "data.root=x"], "rows need dino_vitb8, dino_vits8_300ep"),
        (["table4", "data=scenes", "--out", "/proc/none/x"], "cannot write in /proc/none/x"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_missing_crf_is_said_before_anything_runs(monkeypatch, capsys):
    monkeypatch.setattr(depthg.paper.reproduction.importlib.util, "find_spec", lambda name: None)
    assert main(["table1", "data.root=x"]) == 1
    assert "pydensecrf2" in capsys.readouterr().err


def test_a_table_without_its_data_ends_before_the_first_run(tmp_path, capsys):
    assert main(["table1", "--out", str(tmp_path / "out")]) == 1
    assert "error: data=cocostuff27 needs data.root=DIR: the folder that holds train2017" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_dry_run_prints_the_commands_and_does_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(depthg.paper.reproduction.importlib.util, "find_spec", lambda name: None)  # needs no CRF
    out = tmp_path / "out"
    assert main(["table2", "data.root=x", "--seeds", "4", "--out", str(out), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and all(line.startswith("python -m depthg.") for line in lines)
    assert "experiment=cityscapes_vitb8" in lines[3] and "seed=4" in lines[3]
    assert lines[4].endswith("--flip --crf --no-kmeans --split val --checkpoint last --overwrite")
    assert not out.exists()


def test_seeds_and_settings_in_any_order():
    assert split_arguments(["0,2", "2", "5"], ["a=1"]) == ([0, 2, 5], ["a=1"])
    assert split_arguments(["1", "mode=released"], ["a=1"]) == ([1], ["a=1", "mode=released"])
    with pytest.raises(ValueError, match="--seeds"):
        split_arguments(["mode=released"], [])


def test_default_folders_keep_tables_apart():
    names = [
        default_out("table4", overrides).name
        for overrides in ([], ["data=scenes"], ["data=camvid"], ["data=scenes", "mode=released"])
    ]
    assert names == ["table4-paper", "table4-scenes-paper", "table4-camvid-paper", "table4-scenes-released"]


def test_overwrite_trains_and_evaluates_anew(tmp_path):
    job = Job("a", 0, tmp_path / "a", ("x=1",), ("last", "best"), "flip", "camvid-test-64x64", "test", True)
    for path in (job.folder / "metrics.json", *(job.evaluation_file(c) for c in job.checkpoints)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert commands(job) == []
    anew = [" ".join(command) for command in commands(job, overwrite=True)]
    assert [re.search(r"depthg\.(\w+)", line)[1] for line in anew] == ["train", "evaluate", "evaluate"]
    assert "overwrite=true" in anew[0] and "--split test --checkpoint best" in anew[2] and "--no-kmeans" not in anew[1]
