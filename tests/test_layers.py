"""The house: a layer imports only from layers below it, and the top of depthg/ holds commands and faces alone."""

import ast
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = (  # bottom to top
    "kernels", "runtime", "storage", "data", "config", "foreign", "backbones", "depth", "features", "model",
    "training", "inference", "evaluation", "reporting", "labelling", "paper",
)  # fmt: skip
COMMANDS = {"train", "prepare", "evaluate", "predict", "convert", "reproduce", "diagnose", "report", "replay", "label",
            "export"}  # fmt: skip
FACES = {"__init__", "__main__", "losses", "compat", "cli"}


def layer_of(module: str) -> int:
    """Number of the layer of ``depthg.X...``; commands and faces lie above all."""
    name = module.split(".")[1] if "." in module else ""
    return LAYERS.index(name) if name in LAYERS else len(LAYERS)


def imports(path: Path):
    """Modules of depthg that a file imports, anywhere in it; ``from depthg import x`` counts as ``depthg.x``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("depthg."))
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "depthg":
            yield from (f"depthg.{name.name}" for name in node.names if name.name != "__version__")
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("depthg.")):
            assert node.level == 0, f"{path}: imports are written out"
            yield node.module


def test_a_layer_imports_only_from_below():
    files = [(f"depthg.{p.relative_to(ROOT / 'depthg').as_posix()[:-3].replace('/', '.')}", p)
             for p in sorted((ROOT / "depthg").rglob("*.py"))]  # fmt: skip
    files += [(f"depthg.kernels.{p.stem}", p) for p in sorted((ROOT / "kernels").rglob("*.py"))]
    wrong = [
        f"{module} imports {used}"
        for module, path in files
        for used in imports(path)
        if used.split(".")[1] != module.split(".")[1] and layer_of(used) >= layer_of(module)
        and not (used == "depthg._C" or layer_of(module) == len(LAYERS))
    ]  # fmt: skip
    assert len(files) > 80 and not wrong, "\n".join(wrong)


def test_the_top_holds_one_short_file_per_command():
    top = {path.stem: path for path in (ROOT / "depthg").glob("*.py")}
    assert set(top) == COMMANDS | FACES
    assert {path.name for path in (ROOT / "depthg").iterdir() if path.is_dir()} - {"__pycache__"} == set(LAYERS[1:])
    commands = {**{name: top[name] for name in COMMANDS}, "depth": ROOT / "depthg" / "depth" / "__main__.py"}
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in commands.items()}
    assert max(lengths.values()) < 100, lengths


def test_import_paths_of_earlier_versions_work():
    paths = ("cli.load_config", "train.train", "predict.Segmenter", "replay.read_step", "losses.FeatureCorrelation",
             "compat.ContrastiveCorrelationLoss", "kernels.depthg_loss", "kernels.nt_xent_loss")  # fmt: skip
    for path in paths:
        module, name = path.split(".")
        assert callable(getattr(import_module(f"depthg.{module}"), name)), path
