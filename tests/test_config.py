"""Settings: composition, modes, presets, help, and errors that name the nearest valid key or value."""

import re

import pytest

from depthg.cli import check_overrides, group_choices, load_config, print_help
from depthg.config import Config, options

RELEASED = {
    "data.interpolation": "nearest",
    "depth.truncate": "potsdam3",
    "sampling.unprojection": "released",
    "sampling.read": "bilinear",
    "sampling.transpose": True,
    "sampling.negatives": "neighbour",
    "loss.negative.pairing": "released",
    "loss.depth.relation": "unit",
    "loss.depth.at": "grid",
    "knn.dropout": True,
    "knn.exclude_same_photo": False,
    "val.count": "released",
}


def value_of(config: Config, key: str):
    for part in key.split("."):
        config = getattr(config, part)
    return config


def test_every_option_is_documented():
    for key, (item, _) in options().items():
        assert item.metadata.get("help") or item.name in ("weight", "shift"), key


def test_mode_paper_keeps_the_defaults_and_released_switches_all_of_them():
    plain, released = Config(), load_config(["mode=released"])
    paper = load_config(["mode=paper", "loss.depth.relation=product"])
    for key, value in RELEASED.items():
        assert value_of(released, key) == value != value_of(plain, key), key
        assert value_of(paper, key) == value_of(plain, key), key
    assert (paper.mode, released.mode) == ("paper", "released")


def test_an_override_wins_over_mode_and_preset():
    config = load_config(["mode=released", "loss.depth.relation=gaussian", "experiment=camvid", "iterations=7"])
    assert (config.loss.depth.relation, config.iterations, config.data.name) == ("gaussian", 7, "camvid")


@pytest.mark.parametrize("experiment", group_choices("experiment"))
def test_presets_are_valid_and_say_their_name(experiment):
    assert load_config([f"experiment={experiment}"]).experiment == experiment


@pytest.mark.parametrize("group", ["data", "backbone", "sampling"])
def test_group_files_name_themselves(group):
    for name in group_choices(group):
        config = load_config([f"{group}={name}"])
        assert (config.sampling.method if group == "sampling" else getattr(config, group).name) == name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.depth.wieght=1", "unknown key 'loss.depth.wieght'; did you mean 'loss.depth.weight'?"),
        ("experiment=dmeo", "did you mean 'demo'?"),
        ("backbone=dino_vits9", "did you mean 'dino_vits8'?"),
        ("loss.depth.relation=norms", "did you mean 'normals'?"),
        ("n_classes=1", "n_classes=1 is out of range; it must be at least 2"),
        ("depth.horizon=1.5", "between 0 and 1"),
        ("iterations=abc", "iterations=abc"),
        ("data.size=[224]", "data.size=[224] needs 2 positive numbers"),
        ("loss.quantiles=[0.5,0.5,1.5]", "between 0 and 1"),
        ("sampling.transpose=true", "sampling.read=bilinear"),
        ("loss.depth.pair=crop", "data.crop=five"),
        ("checkpoint.rule=best", "val.every"),
        ("seed=[1", "seed=[1"),
        ("depth.source=folder", "depth.root=DIR"),
        ("knn.draw=31", "exceeds knn.k=30"),
        ("iterations", "key=value"),
        ("sampling.schedule=[[1]]", "sampling.schedule"),
    ],
)
def test_errors_name_the_key_and_the_fix(override, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config([override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["checkpoint.rule=best", "val.every=5", "data.eval_split=test"], "use val"),
        (["data=folder", "data.labels=x"], "go together"),
        (["data=folder", "data.classes=x"], "go together"),
    ],
)
def test_impossible_combinations(overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(overrides)


def test_clusters_of_a_folder():
    assert load_config(["data=folder"]).n_classes == 8
    assert load_config(["data=folder", "n_classes=12"]).n_classes == 12
    labelled = ["data=folder", "data.labels=x", "data.classes=y"]
    assert load_config(labelled).n_classes is None, "as many as there are classes"
    assert load_config([*labelled, "n_classes=30"]).n_classes == 30


def test_resume_takes_no_other_settings():
    with pytest.raises(ValueError, match="drop batch_size"):
        check_overrides(["resume=runs/x", "batch_size=4"])
    check_overrides(["resume=runs/x", "device=cpu"])


def test_help_lists_every_key_and_preset(capsys):
    print_help("depthg.train", "Summary.", ["experiment=camvid"])
    text = capsys.readouterr().out
    assert all(key in text for key in options())
    assert "experiment=camvid|demo" in text and "python -m depthg.train" in text
    assert "[320, 320]" in text, "values are those of the preset"


def test_hydra_flags_pass(run_module):
    finished = run_module("depthg.train", "--cfg", "job", "iterations=7")
    assert finished.returncode == 0 and "iterations: 7" in finished.stdout
    typo = run_module("depthg.train", "--multirun", "sed=0,1")
    assert typo.returncode == 1 and "did you mean 'seed'?" in typo.stderr
