"""Settings: composition, modes, presets, help, and errors that name the nearest valid key or value."""

import re
import sys
from importlib import resources

import pytest
from omegaconf import OmegaConf

from depthg.config.command import COMMON, print_help
from depthg.config.composing import check_overrides, group_choices, load_config
from depthg.config.schema import PLACES, Config, differing, flatten, options
from depthg.paper.tables import paper_tables
from depthg.train import main

RELEASED = {
    "last_batch": "keep",
    "data.interpolation": "nearest",
    "depth.model": "Intel/zoedepth-nyu",
    "depth.flip": True,
    "depth.mapping": "minmax",
    "depth.truncate": "potsdam3",
    "sampling.unprojection": "released",
    "sampling.read": "bilinear",
    "sampling.transpose": True,
    "sampling.negatives": "neighbour",
    "loss.negative.pairing": "released",
    "loss.depth.relation": "unit",
    "loss.depth.at": "grid",
    "loss.depth.decay": "after",
    "knn.dropout": True,
    "knn.exclude_same_photo": False,
    "val.count": "released",
    "val.crf_image": "released",
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
    both = (OmegaConf.to_container(OmegaConf.structured(config)) for config in (load_config([]), released))
    assert set(differing(*both)) == {"mode", *RELEASED}


# Protocol, section 3: batch, code dim; weight, shift of self, neighbour, negative, depth; factor, every; centring.
RUNS = {
    "cocostuff27_vits8": (
        (32, 70), (0.58, 0.07), (0.36, 0.025), (0.70, 0.761), (0.19, 0.03), (0.6, 250), True,
        "cocostuff27", "dino_vits8_300ep",
    ),
    "cocostuff27_vitb8": (
        (32, 90), (0.23052367315917113, 0.12326312284078644), (1.0500945312858674, 0.21028290947990444),
        (0.2485038032028848, 0.9748103425096648), (0.16026274975444096, 0.035909146298813595), (0.64, 100), True,
        "cocostuff27", "dino_vitb8",
    ),
    "cityscapes_vitb8": (
        (32, 100), (0.95, 0.39), (1.02, 0.25), (0.57, 0.26), (0.09, 0.03), (0.8, 400), False,
        "cityscapes", "dino_vitb8",
    ),
    "potsdam3_vits8": (
        (16, 90), (0.61, 0.20), (0.34, 0.09), (0.72, 0.63), (0.13, 0.14), (1.0, 0), True, "potsdam3",
        "dino_vits8_300ep",
    ),
}  # fmt: skip
# Points per side with their schedule, and sampling: mode paper, mode released.
POINTS = {
    "cocostuff27_vits8": ((9, [], "fps"), (11, [[1, 9], [1001, 8], [2001, 7]], "fps")),
    "cocostuff27_vitb8": ((12, [], "fps"),) * 2,
    "cityscapes_vitb8": ((11, [], "fps"), (11, [], "random")),
    "potsdam3_vits8": ((11, [], "fps"),) * 2,
}
STEGO = {
    "stego_cocostuff27_vits8": ((16, 70), (0.67, 0.08), (0.25, 0.02), (0.63, 0.66), True),
    "stego_cocostuff27_vitb8": ((16, 90), (0.1, 0.12), (1.0, 0.2), (0.1538476246415498, 1.0), True),
    "stego_cityscapes_vitb8": (
        (16, 100), (1.0, 0.45828472207), (0.577453483136995, 0.1754346515479633),
        (0.9058762625226623, 0.31361241889448443), False,
    ),
    "stego_potsdam3_vits8": ((16, 70), (0.67, 0.08), (0.25, 0.02), (0.63, 0.46), True),
}  # fmt: skip


def terms(config: Config) -> tuple:
    loss = config.loss
    return tuple((term.weight, term.shift) for term in (loss.self, loss.neighbour, loss.negative, loss.depth))


def check_common(config: Config) -> None:
    """What all runs of the paper share."""
    assert (config.head.lr, config.probe.lr, config.head.dropout) == (5e-4, 5e-3, 0.1)
    assert (config.knn.draw, config.loss.negative.draws, config.seed, config.loss.clamp) == (7, 5, 0, True)
    assert (config.data.size, config.data.eval_size, config.data.crop_ratio) == ([224, 224], [320, 320], 0.5)
    assert (config.loss.shifts, config.probe.reinit, config.probe.cells) == ("fixed", 0, 0)
    assert (config.backbone.pca, config.backbone.standardize) == (0, False)
    assert config.checkpoint.rule == "last" and config.val.every == 0, "labels choose nothing unless asked to"


@pytest.mark.parametrize("mode", ["paper", "released"])
@pytest.mark.parametrize("name", RUNS)
def test_runs_of_the_paper_have_its_hyper_parameters(name, mode):
    config = load_config([f"experiment={name}", f"mode={mode}"])
    sizes, *pairs, decay, center, data, backbone = RUNS[name]
    assert (config.batch_size, config.head.dim) == sizes and config.iterations == 2334
    assert terms(config) == tuple(pairs)
    assert (config.loss.depth.factor, config.loss.depth.every, config.loss.center) == (*decay, center)
    assert (config.data.name, config.backbone.name) == (data, backbone)
    assert config.data.crop == ("none" if data == "potsdam3" else "five"), "tiles of Potsdam stay whole"
    networks = {"paper": "Intel/zoedepth-nyu-kitti", "released": "Intel/zoedepth-nyu"}
    assert (config.depth.source, config.depth.model) == ("model", networks[mode])
    sampling = config.sampling
    assert (sampling.points, sampling.schedule, sampling.method) == POINTS[name][mode == "released"]
    assert config.loss.depth.relation == {"paper": "product", "released": "unit"}[mode] and config.mode == mode
    check_common(config)


@pytest.mark.parametrize("mode", ["paper", "released"])
@pytest.mark.parametrize("name", STEGO)
def test_stego_rows_have_stegos_settings_and_no_depth(name, mode):
    config = load_config([f"experiment={name}", f"mode={mode}"])
    sizes, *pairs, center = STEGO[name]
    assert (config.batch_size, config.head.dim) == sizes and config.iterations == 5000
    assert terms(config) == (*pairs, (0.0, 0.0)) and config.loss.center is center
    assert (config.depth.source, config.sampling.method, config.sampling.points) == ("none", "random", 11)
    assert config.data.crop == ("none" if "potsdam" in name else "five")
    assert config.data.name in name and config.backbone.name.split("_")[1] in name
    check_common(config)


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_dino_row_trains_nothing(mode):
    config = load_config(["experiment=dino_cocostuff27_vitb8", f"mode={mode}"])
    assert (config.iterations, config.backbone.name, config.depth.source) == (0, "dino_vitb8", "none")


def test_command_line_wins_over_what_a_preset_sets_for_one_mode():
    config = load_config(["experiment=cocostuff27_vits8", "mode=released", "sampling.points=5", "sampling.schedule=[]"])
    assert (config.sampling.points, config.sampling.schedule) == (5, [])


@pytest.mark.parametrize("name", group_choices("experiment"))
def test_presets_open_with_their_command_and_the_number_of_the_paper(name):
    lines = (resources.files("depthg.config.conf") / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert lines[1].startswith("# python -m depthg.train") and (name in lines[1] or name == "demo")
    if name not in ("demo", "camvid", "photos"):
        table, numbers = paper_row(name)
        assert re.search(rf"Tables? .*{table}", lines[2]), name
        for number in filter(None, numbers):
            assert re.search(rf"\b{number}\b", lines[2]), (name, number)


def paper_row(experiment: str) -> tuple[int, list]:
    """Number of the table and the paper's figures of a preset, from the tables of ``depthg.reproduce``."""
    for name, table in paper_tables().items():
        for row in table.rows:
            if row.experiment == experiment:
                return int(name[-1]), list(row.paper.values())
    raise AssertionError(f"{experiment} is in no table")


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
        ("n_classes=1", "n_classes=1 is out of range; it must be between 2 and 1000"),
        ("n_classes=1001", "n_classes=1001 is out of range; it must be between 2 and 1000"),
        ("depth.horizon=1.5", "between 0 and 1"),
        ("iterations=abc", "iterations=abc"),
        ("data.size=[224]", "data.size=[224] needs 2 positive numbers"),
        ("loss.quantiles=[0.5,0.5,1.5]", "between 0 and 1"),
        ("sampling.transpose=true", "sampling.read=bilinear"),
        ("loss.depth.pair=crop", "data.crop=five"),
        ("checkpoint.rule=best", "val.every"),
        ("checkpoint.rule=both", "checkpoint.rule=both needs val.every"),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.size=448"], "data.size=448 is no height and width; write 'data.size=[448,448]'"),
        (["data.eval_size=320x448"], "write 'data.eval_size=[320,448]'"),
        (["--data", "folder"], "'--data': settings have no dashes and no space; write data=folder"),
        (["--data.root=x"], "write data.root=x"),
        (["--batch-size", "4"], "write batch_size=4"),
        (["data.root", "=", "x"], "'data.root' '=': no spaces around =; write data.root=x"),
        (["data.root", "=x"], "write data.root=x"),
        (["data.root=", "x"], "write data.root=x"),
    ],
)
def test_habits_of_other_programs_are_answered_with_the_right_form(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert ended.value.code == 1 and message in error and error.count("\n") == 1


def test_right_forms_pass():
    check_overrides(["data.size=[448,448]", "name=", "seed=1", "data.root=x", "--multirun"])
    check_overrides(["--multirun", "data.size=[64,64],[96,96]", "seed=0,1"])
    check_overrides(["--cfg", "job", "data=folder"])


def test_a_run_that_does_not_exist_names_those_that_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^runs/mine is not a run folder: it does not exist$"):
        load_config(["resume=runs/mine"])
    for name in ("mine", "street"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").touch()
    for given, hint in {
        "runs/mina": "did you mean 'mine'?",
        "mine": "did you mean runs/mine?",
        "runs/zzz": "mine, runs/",
    }.items():
        with pytest.raises(FileNotFoundError, match=re.escape(hint)):
            load_config([f"resume={given}"])


def test_a_folder_of_photos_has_its_own_preset():
    plain = load_config(["data=folder"])
    assert plain.experiment == "photos" and plain == load_config(["experiment=photos"])
    assert load_config(["data=folder", "experiment=demo"]).experiment == "demo"
    assert load_config(["data=folder", "experiment=demo"]).data.name == "folder"
    assert load_config(["data=folder", "data=camvid"]).experiment == load_config([]).experiment == "demo"
    assert load_config(["data=folder", "mode=released"]).loss.depth.relation == "unit"


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
    common, _, rest = text.partition("All keys")
    assert re.findall(r"^([a-z_.]+) ", common.partition("Keys to know")[2], re.M) == ["key", *COMMON]
    assert len(COMMON) == 10 and all(f"\n{key} " in rest for key in options())
    assert "experiment=camvid|cityscapes_vitb8|" in text and "python -m depthg.train" in text
    assert "[320, 320]" in text, "values are those of the preset"


def test_a_typo_beside_flags_of_hydra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--multirun", "sed=0,1"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1 and "did you mean 'seed'?" in capsys.readouterr().err


def test_nested_settings_are_flattened_and_places_are_no_difference():
    a = {"seed": 0, "name": "x", "loss": {"depth": {"weight": 1}}, "cache": {"dir": "here"}, "empty": {}, "old": None}
    assert flatten(a)["loss.depth.weight"] == 1 and flatten(a)["empty"] == {}
    b = {"seed": 0, "name": "y", "loss": {"depth": {"weight": 2}}, "cache": {"dir": "there"}, "empty": {}, "new": [3]}
    assert differing(a, b) == {"loss.depth.weight": (1, 2), "new": (None, [3])}
    assert set(PLACES) <= set(options())
