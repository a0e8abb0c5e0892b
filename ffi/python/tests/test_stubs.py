"""The stubs say what is there: every class and method of the compiled half, every exception."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import straightway
from straightway import _errors, _native

FOLDER = Path(straightway.__file__).parent
# What Python gives every class by itself, or what a slot stands for.
IMPLIED = {"__init__", "__new__", "__buffer__", "__release_buffer__"}


def classes(name: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse((FOLDER / name).read_text())
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def own(kind: type) -> set[str]:
    names = set(vars(kind)) - {"__doc__", "__module__", "__weakref__"}
    return {name for name in names if not hasattr(object, name)} - IMPLIED


def test_every_method_of_the_compiled_half_has_a_stub_and_the_reverse():
    stubs = {name: node for name, node in classes("_native.pyi").items() if not name.startswith("_")}
    runtime = {name: kind for name, kind in vars(_native).items() if isinstance(kind, type)}
    assert stubs.keys() == runtime.keys()
    for name, node in stubs.items():
        methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)} - IMPLIED
        assert methods == own(runtime[name]), name


def test_every_exception_has_a_stub_with_the_same_bases():
    stubs = classes("_errors.pyi")
    assert list(stubs) == _errors.__all__
    for name, node in stubs.items():
        kind = getattr(straightway, name)
        assert [base.id for base in node.bases] == [base.__name__ for base in kind.__bases__], name


@pytest.mark.parametrize("name", ["py.typed", "_native.pyi", "_errors.pyi"])
def test_the_package_is_marked_as_typed(name: str):
    assert (FOLDER / name).exists()
