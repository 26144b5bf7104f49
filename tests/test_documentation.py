"""Public names carry docstrings; those of the kernels name every argument, its shape, the result and the errors."""

import inspect
import re
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import pytest

import depthg
from depthg import kernels
from depthg.data.base import Split
from depthg.kernels.checks import HAS_TRITON

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = [
    module.name
    for module in walk_packages(depthg.__path__, "depthg.")
    if module.name != "depthg._C" and (HAS_TRITON or not module.name.endswith("_triton"))
]
IMPORTED = re.findall(r"^from (depthg[\w.]*) import (.+)$", README, flags=re.MULTILINE)
FUNCTIONS = [name for name in kernels.__all__ if inspect.isfunction(getattr(kernels, name))]


def public_names():
    """``module:name`` of what ``__all__`` lists, what the README imports, and the ``main`` of every command."""
    for module in MODULES:
        found = import_module(module)
        yield from (f"{module}:{name}" for name in getattr(found, "__all__", ()))
        if hasattr(found, "main"):
            yield f"{module}:main"
    for module, names in IMPORTED:
        yield from (f"{module}:{name.strip()}" for name in names.split(","))


def documented(item) -> bool:
    """A docstring of its own: not the signature that dataclasses and named tuples get."""
    text = item.__doc__ or ""
    return bool(text.strip()) and not (inspect.isclass(item) and text.startswith(f"{item.__name__}("))


def test_the_lists_are_not_empty():
    assert len(MODULES) > 80 and len(IMPORTED) > 3 and len(FUNCTIONS) > 8
    assert sum(place.endswith(":main") for place in public_names()) > 8


@pytest.mark.parametrize("module", MODULES)
def test_modules_say_what_they_are(module):
    found = import_module(module)
    assert documented(found) or not Path(found.__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize("place", sorted(set(public_names())))
def test_public_names_are_documented(place):
    module, name = place.split(":")
    item = getattr(import_module(module), name)
    if not (inspect.isclass(item) or inspect.isroutine(item)):
        return
    assert documented(item), place
    for method, function in vars(item).items() if inspect.isclass(item) else ():
        if inspect.isfunction(function) and not method.startswith("_"):
            assert inspect.getdoc(function) or hasattr(Split, method), f"{place}.{method}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_kernel_docstrings_are_complete(name):
    function = getattr(kernels, name)
    text = inspect.getdoc(function)
    parts = dict(re.findall(r"^(Args|Returns|Raises):\n(.*?)(?=^\S|\Z)", text, flags=re.DOTALL | re.MULTILINE))
    assert set(parts) == {"Args", "Returns", "Raises"}
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"^ .*\b{argument}\b.*:", parts["Args"], flags=re.MULTILINE), argument
    assert re.search(r"\[[A-Z]\w*", parts["Args"]), "a shape"
    assert re.search(r"\[[A-Za-z]|0-dim", parts["Returns"]), "the shape of the result"
    assert "ValueError" in parts["Raises"]
