"""Public names carry docstrings; those of the kernels name every argument, its shape, the result and the errors."""

import inspect
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import walk_packages

import depthg
from depthg import kernels
from depthg.data.base import Split
from depthg.kernels.checks import HAS_TRITON

ROOT = next(folder for folder in Path(__file__).parents if (folder / "mkdocs.yml").is_file())
PAGES = "\n".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
NEED_GRADIO = ("depthg.labelling.page", "depthg.labelling.server")
MODULES = [
    module.name
    for module in walk_packages(depthg.__path__, "depthg.")
    if module.name != "depthg._C"
    and (HAS_TRITON or not module.name.endswith("_triton"))
    and (module.name not in NEED_GRADIO or find_spec("gradio"))
]
IMPORTED = re.findall(r"^from (depthg[\w.]*) import (.+)$", PAGES, flags=re.MULTILINE)
FUNCTIONS = [name for name in kernels.__all__ if inspect.isfunction(getattr(kernels, name))]


def public_names():
    """``(module, name)`` of what ``__all__`` lists, what README and pages import, and the ``main`` of every command."""
    for module in MODULES:
        found = import_module(module)
        yield from ((module, name) for name in getattr(found, "__all__", ()))
        if hasattr(found, "main"):
            yield module, "main"
    for module, names in IMPORTED:
        yield from ((module, name.strip()) for name in names.split(","))


def documented(item) -> bool:
    """A docstring of its own: not the signature that dataclasses and named tuples get."""
    text = item.__doc__ or ""
    return bool(text.strip()) and not (inspect.isclass(item) and text.startswith(f"{item.__name__}("))


def without_docstring(module: str, name: str) -> list[str]:
    """The class or function, if it has no docstring, and public methods of the class that have none."""
    item = getattr(import_module(module), name)
    if not (inspect.isclass(item) or inspect.isroutine(item)):
        return []
    found = [] if documented(item) else [f"{module}:{name}"]
    for method, function in vars(item).items() if inspect.isclass(item) else ():
        if inspect.isfunction(function) and not method.startswith("_"):
            if not (inspect.getdoc(function) or hasattr(Split, method)):
                found.append(f"{module}:{name}.{method}")
    return found


def missing_parts(name: str) -> list[str]:
    """What the docstring of a kernel leaves out."""
    function = getattr(kernels, name)
    text = inspect.getdoc(function) or ""
    parts = dict(re.findall(r"^(Args|Returns|Raises):\n(.*?)(?=^\S|\Z)", text, flags=re.DOTALL | re.MULTILINE))
    given, result, errors = (parts.get(part, "") for part in ("Args", "Returns", "Raises"))
    checks = {
        f"the argument {argument}": re.search(rf"^ .*\b{argument}\b.*:", given, flags=re.MULTILINE)
        for argument in inspect.signature(function).parameters
    }
    checks |= {
        "a shape": re.search(r"\[[A-Z]\w*", given),
        "the shape of the result": re.search(r"\[[A-Za-z]|0-dim", result),
        "ValueError": "ValueError" in errors,
        "Args, Returns and Raises": len(parts) == 3,
    }
    return [f"{name}: {what}" for what, there in checks.items() if not there]


def test_public_names_are_documented():
    modules = [module for module in map(import_module, MODULES) if Path(module.__file__).stat().st_size]
    places = sorted(set(public_names()))
    assert len(modules) > 80 and len(IMPORTED) > 3 and sum(name == "main" for _, name in places) > 8
    missing = [module.__name__ for module in modules if not documented(module)]
    missing += [found for place in places for found in without_docstring(*place)]
    assert not missing, "no docstring: " + ", ".join(missing)


def test_kernel_docstrings_are_complete():
    assert len(FUNCTIONS) > 8
    missing = [found for name in FUNCTIONS for found in missing_parts(name)]
    assert not missing, "not in the docstring: " + ", ".join(missing)
