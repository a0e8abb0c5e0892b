"""Beside the original package: files as bytes, and modules whose tensors share memory."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import straightway

torch = pytest.importorskip("torch", reason="torch is not installed")
np = pytest.importorskip("numpy")
import safetensors.numpy  # noqa: E402
import safetensors.torch  # noqa: E402
import test_numpy  # noqa: E402
import test_torch  # noqa: E402

import straightway.numpy  # noqa: E402
import straightway.torch  # noqa: E402


@pytest.mark.parametrize(
    ("ours", "theirs"), [(straightway.numpy, safetensors.numpy), (straightway.torch, safetensors.torch)], ids=["numpy", "torch"]
)
def test_every_function_of_the_original_is_there_with_its_arguments(ours, theirs):
    public = {name: function for name, function in vars(theirs).items() if inspect.isfunction(function) and name[0] != "_"}
    # What only the original's own functions call.
    for name in public.keys() - {"storage_ptr", "storage_size"}:
        asked = inspect.signature(public[name]).parameters.values()
        given = inspect.signature(getattr(ours, name)).parameters.values()
        assert [(one.name, one.kind, one.default) for one in given] == [(one.name, one.kind, one.default) for one in asked], name
        assert name in ours.__all__


def test_bytes_of_numpy_arrays_are_those_of_the_original():
    tensors = test_numpy.tensors_of_every_kind()
    tensors["big endian"] = np.arange(7, dtype=">i4")
    for metadata in [None, {}, {"who": "wir, ä \n \" \x01"}]:
        content = safetensors.numpy.save(tensors, metadata)
        assert straightway.numpy.save(tensors, metadata) == content
    loaded = straightway.numpy.load(content)
    assert set(loaded) == set(tensors) and loaded["big endian"].tolist() == list(range(7))
    theirs = safetensors.numpy.load(content)
    assert all(test_numpy.same(loaded[name], theirs[name]) and loaded[name].flags.writeable for name in tensors)
    assert straightway.numpy.save({}) == safetensors.numpy.save({}) and straightway.numpy.load(safetensors.numpy.save({})) == {}


def test_bytes_of_torch_tensors_are_those_of_the_original():
    tensors = test_torch.tensors_of_every_kind()
    content = safetensors.torch.save(tensors, {"format": "pt"})
    assert straightway.torch.save(tensors, {"format": "pt"}) == content
    loaded = straightway.torch.load(bytearray(content))
    assert set(loaded) == set(tensors)
    assert all(test_torch.same(loaded[name], tensors[name].detach()) for name in tensors)
    loaded["large"] += 1
    assert straightway.torch.load(content)["large"].equal(tensors["large"])


def test_bytes_that_are_no_file_are_refused():
    content = safetensors.numpy.save({"a": np.arange(100)})
    for broken in [b"", b"1234567", content[:-1], content + b"x", (1 << 60).to_bytes(8, "little") + content[8:]]:
        for load in [straightway.numpy.load, straightway.torch.load]:
            with pytest.raises(straightway.BadFormat):
                load(broken)
    with pytest.raises(TypeError):
        straightway.numpy.load("text")
    for save in [straightway.torch.save, safetensors.torch.save]:
        with pytest.raises(ValueError, match="contiguous"):
            save({"a": torch.zeros(4, 4).T})
        with pytest.raises(RuntimeError, match="share memory"):
            base = torch.zeros(4)
            save({"a": base, "b": base})
    with pytest.raises(ValueError, match="__metadata__"):
        straightway.torch.save({"__metadata__": torch.zeros(1)})


class Tied(torch.nn.Module):
    """Weights under two names, a row of them under a third, and a module twice."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.first = torch.nn.Linear(5, 7)
        self.second = torch.nn.Linear(5, 7)
        self.second.weight = self.first.weight
        self.part = torch.nn.Parameter(self.first.weight.detach()[2:4])
        self.norm = torch.nn.LayerNorm(3)
        self.again = self.norm
        self.alone = torch.nn.Parameter(torch.randn(4, 3).T)


def values(model: torch.nn.Module) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("metadata", [None, {"second.weight": "the caller's own", "x": "y"}])
def test_a_module_with_shared_tensors_goes_both_ways(tmp_path: Path, metadata):
    model = Tied()
    files = {"ours": tmp_path / "ours.safetensors", "theirs": tmp_path / "theirs.safetensors"}
    straightway.torch.save_model(model, files["ours"], metadata)
    safetensors.torch.save_model(model, files["theirs"], metadata and dict(metadata))
    opened = {name: safetensors.safe_open(file, "pt") for name, file in files.items()}
    assert sorted(opened["ours"].keys()) == sorted(opened["theirs"].keys())
    assert opened["ours"].metadata() == opened["theirs"].metadata()
    assert len(opened["ours"].keys()) < len(model.state_dict())
    for file in files.values():
        for load_model in (straightway.torch.load_model, safetensors.torch.load_model):
            other = Tied(seed=1)
            assert values(other) != values(model)
            assert load_model(other, file) == (set(), [])
            assert values(other) == values(model)
            assert other.first.weight is other.second.weight


def test_strict_is_that_of_the_original(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    state = {name: tensor.clone().contiguous() for name, tensor in Tied().state_dict().items()}
    del state["norm.bias"], state["again.bias"], state["second.bias"], state["part"]
    # The other name of the shared weights, and both: either is taken, and both are one too many.
    for dropped in ["first.weight", "second.weight", None]:
        saved = {name: tensor for name, tensor in state.items() if name != dropped}
        safetensors.torch.save_file({**saved, "stranger": torch.zeros(2)}, path)
        told = []
        for load_model in (straightway.torch.load_model, safetensors.torch.load_model):
            other = Tied(seed=1)
            lists = load_model(other, path, strict=False)
            with pytest.raises(RuntimeError) as caught:
                load_model(other, path)
            told.append((lists[0], sorted(lists[1]), str(caught.value), values(other)))
        assert told[0] == told[1]
        assert "second.bias" in told[0][0] and "stranger" in told[0][1]
    safetensors.torch.save_file({"weight": torch.zeros(3, 3)}, path)
    for load_model in (straightway.torch.load_model, safetensors.torch.load_model):
        with pytest.raises(RuntimeError, match="size mismatch"):
            load_model(torch.nn.Linear(2, 2), path, False)


def test_modules_that_a_file_cannot_say_are_refused(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    sliced = torch.nn.Module()
    whole = torch.zeros(10)
    sliced.a, sliced.b = torch.nn.Parameter(whole[:6]), torch.nn.Parameter(whole[4:])
    turned = torch.nn.Module()
    turned.a = torch.nn.Parameter(torch.randn(4, 3).T)
    for save_model in (straightway.torch.save_model, safetensors.torch.save_model):
        with pytest.raises(RuntimeError, match="cover"):
            save_model(sliced, path)
        with pytest.raises(ValueError, match="force_contiguous=True"):
            save_model(turned, path, force_contiguous=False)
    assert not list(tmp_path.iterdir())
