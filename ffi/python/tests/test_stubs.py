"""The stubs say what is there: every class and method of the compiled half with its parameters, every exception."""

from __future__ import annotations

import ast
import inspect
import types
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


# Name, kind, default; the default of one that has none is `inspect.Parameter.empty`.
Parameters = list[tuple[str, str, object]]


def written(node: ast.FunctionDef) -> Parameters:
    """Parameters of a stub, without self."""
    given, found = node.args, []
    positional = [(one, "POSITIONAL_ONLY") for one in given.posonlyargs] + [(one, "POSITIONAL_OR_KEYWORD") for one in given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + given.defaults
    found += [(one.arg, kind, default) for (one, kind), default in zip(positional, defaults)]
    if given.vararg:
        found.append((given.vararg.arg, "VAR_POSITIONAL", None))
    found += [(one.arg, "KEYWORD_ONLY", default) for one, default in zip(given.kwonlyargs, given.kw_defaults)]
    if given.kwarg:
        found.append((given.kwarg.arg, "VAR_KEYWORD", None))
    told = [(name, kind, ast.literal_eval(value) if value else inspect.Parameter.empty) for name, kind, value in found]
    return told[1:] if told and told[0][0] == "self" else told


def compiled(function: object) -> Parameters:
    """Parameters that the compiled half tells, without self."""
    told = [(one.name, one.kind.name, one.default) for one in inspect.signature(function).parameters.values()]
    return told[1:] if told and told[0][0] == "self" else told


def decorators(node: ast.FunctionDef) -> set[str]:
    return {one.id for one in node.decorator_list if isinstance(one, ast.Name)}


def differs(owner: str, node: ast.FunctionDef, runtime: object) -> str | None:
    """How a stub of a class differs from what the class has."""
    where = f"{owner}.{node.name}"
    if decorators(node) & {"property"} or isinstance(runtime, types.GetSetDescriptorType):
        is_both = decorators(node) == {"property"} and isinstance(runtime, types.GetSetDescriptorType)
        return None if is_both else f"{where}: a property in one of them"
    if ("staticmethod" in decorators(node)) != isinstance(runtime, staticmethod):
        return f"{where}: static in one of them"
    if isinstance(runtime, types.WrapperDescriptorType):
        # A slot, whose parameters are Python's.
        return None
    function = runtime.__func__ if isinstance(runtime, staticmethod) else runtime
    # Three of them, which the compiled half takes as they come.
    if node.name == "__exit__" and [kind for _, kind, _ in compiled(function)] == ["VAR_POSITIONAL"]:
        return None if len(written(node)) == 3 else f"{where}: three parameters"
    return None if written(node) == compiled(function) else f"{where}: {written(node)} is {compiled(function)}"


def test_every_parameter_has_the_name_kind_and_default_of_the_compiled_half():
    wrong, seen = [], 0
    for name, node in classes("_native.pyi").items():
        if name.startswith("_"):
            continue
        kind = getattr(_native, name)
        for item in node.body:
            if not isinstance(item, ast.FunctionDef) or item.name in IMPLIED - {"__init__"}:
                continue
            if item.name == "__init__":
                if written(item) != compiled(kind):
                    wrong.append(f"{name}: {written(item)} is {compiled(kind)}")
            elif said := differs(name, item, vars(kind)[item.name]):
                wrong.append(said)
            seen += 1
    assert not wrong and seen > 80, (seen, wrong)


def test_every_function_of_the_compiled_half_has_a_stub_with_its_parameters():
    tree = ast.parse((FOLDER / "_native.pyi").read_text())
    stubs = {node.name: written(node) for node in tree.body if isinstance(node, ast.FunctionDef)}
    functions = {name: value for name, value in vars(_native).items() if isinstance(value, types.BuiltinFunctionType)}
    assert stubs == {name: compiled(function) for name, function in functions.items()}


def test_a_stub_that_differs_is_noticed():
    runtime = vars(_native.Engine)
    for text in [
        "def open(self, url): ...",
        "def open(self, uri=None): ...",
        "def open(self, *, uri): ...",
        "def open(self, uri, more): ...",
        "@staticmethod\ndef open(uri): ...",
        "@property\ndef open(self): ...",
    ]:
        assert differs("Engine", ast.parse(text).body[0], runtime["open"]), text
    assert differs("Engine", ast.parse("def open(self, uri): ...").body[0], runtime["open"]) is None


def test_every_exception_has_a_stub_with_the_same_bases():
    stubs = classes("_errors.pyi")
    assert list(stubs) == _errors.__all__
    for name, node in stubs.items():
        kind = getattr(straightway, name)
        assert [base.id for base in node.bases] == [base.__name__ for base in kind.__bases__], name


@pytest.mark.parametrize("name", ["py.typed", "_native.pyi", "_errors.pyi"])
def test_the_package_is_marked_as_typed(name: str):
    assert (FOLDER / name).exists()
