"""Values on the command line that Hydra's grammar does not know: paths as people have them."""

import miniature
import pytest

from depthg.config.composing import load_config, quote_text

PATHS = [
    "fotos mit ü", "~/x", "a (1)/b", "a=b", "a,b", "it's", '"x"y"', "[x]", "{x}", "a#b", "C:\\x\\", "a\\'b", "x & y",
    "写真", "a$b", "x!;y", "'a' b", " a",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_paths_may_hold_anything(path):
    config = load_config(["data=folder", f"data.root={path}", f"cache.dir={path}"])
    assert config.data.root == config.cache.dir == path


def test_quotes_of_the_user_are_not_part_of_the_value():
    for given in ("'a b'", '"a b"'):
        assert load_config([f"data.root={given}"]).data.root == "a b"


def test_what_needs_no_quotes_stays_as_it_is():
    given = ["data.root='ü b'", 'data.root="ü"', "data.root=${cache.dir}", "seed=1,2", "data.root=null", "--multirun"]
    assert quote_text(given) == given
    assert quote_text(["sampling=fps", "loss.quantiles=[0.5,0.5,0.5]", "depth.scale=ü"])[2] == "depth.scale=ü"
    assert load_config(["data.root=null", "name=12"]).name == "12"


def test_sweeps_over_text_stay_sweeps():
    swept = ["data.root=a,ü", "name=choice(a,b)"]
    assert quote_text(swept, sweep=True) == swept and quote_text(swept) != swept
    assert quote_text(["data.root=ü"], sweep=True) == ["data.root='ü'"]


def test_flags_of_hydra_take_such_paths(run_module):
    settings = ["iterations=7", "data=folder", "data.root=fotos mit ü (1)"]
    finished = run_module("depthg.train", "--cfg", "job", *settings)
    assert finished.returncode == 0
    assert "iterations: 7" in finished.stdout and "experiment: photos" in finished.stdout
    assert "root: fotos mit ü (1)" in finished.stdout


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("mode=released", "depth.source=none"),
        ("data=folder", "data.root=/a b/ü", "n_classes=4"),
        ("sampling=random", "sampling.read=bilinear", "data.size=[64,96]", "name=null"),
        ("data.crop=five", "head.lr=1e-3", "loss.depth.relation=gaussian", "loss.center=false"),
    ],
)
def test_the_settings_that_tests_compose_faster_are_the_same(tmp_path, overrides):
    assert miniature.settings(tmp_path, *overrides) == load_config(miniature.arguments(tmp_path, *overrides))
