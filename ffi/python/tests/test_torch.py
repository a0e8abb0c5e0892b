"""torch: types, sharing, and the functions of safetensors.torch beside the original."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

import straightway

torch = pytest.importorskip("torch", reason="torch is not installed")
import safetensors.torch  # noqa: E402

import straightway.torch  # noqa: E402


def tensors_of_every_kind() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for dtype in straightway.torch._NAMES:
        raw = torch.randint(0, 2, (4, 6, 8), generator=generator, dtype=torch.uint8)
        size = torch.empty((), dtype=dtype).element_size()
        if dtype == torch.bool:
            tensors["t.bool"] = raw.bool()
        else:
            tensors[f"t.{dtype}"] = raw.repeat(1, 1, size).view(dtype)
    tensors["scalar"] = torch.tensor(2.5)
    tensors["empty"] = torch.zeros((0, 4))
    tensors["grad"] = torch.nn.Parameter(torch.randn(5, 5, generator=generator))
    tensors["large"] = torch.randn((700, 999), generator=generator)
    return tensors


def bytes_of(tensor: torch.Tensor) -> bytes:
    return b"" if tensor.numel() == 0 else tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return (left.dtype, left.shape, bytes_of(left)) == (right.dtype, right.shape, bytes_of(right))


def test_files_of_the_original_are_read(tmp_path: Path):
    tensors = tensors_of_every_kind()
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    theirs = safetensors.torch.load_file(tmp_path / "a.safetensors")
    ours = straightway.torch.load_file(tmp_path / "a.safetensors")
    assert type(ours) is dict and set(ours) == set(theirs) == set(tensors)
    for name in tensors:
        assert same(ours[name], theirs[name]), name


def test_our_files_are_read_by_the_original(tmp_path: Path):
    tensors = tensors_of_every_kind()
    straightway.torch.save_file(tensors, tmp_path / "b.safetensors", metadata={"format": "pt"})
    theirs = safetensors.torch.load_file(tmp_path / "b.safetensors")
    assert set(theirs) == set(tensors)
    for name in tensors:
        assert same(theirs[name], tensors[name]), name


def test_tensors_own_no_more_than_their_bytes(tmp_path: Path):
    straightway.save_file({"a": torch.zeros(1 << 18), "b": torch.ones(3)}, tmp_path / "m.safetensors")
    loaded = straightway.torch.load_file(tmp_path / "m.safetensors")
    assert loaded["b"].untyped_storage().nbytes() == 12
    loaded["b"] += 1
    torch.save(loaded["b"], tmp_path / "b.pt")
    assert (tmp_path / "b.pt").stat().st_size < 10_000
    safetensors.torch.save_file(loaded, tmp_path / "again.safetensors")


def test_memory_stays_under_a_tensor(tmp_path: Path):
    expected = torch.randn(300, 300)
    straightway.save_file({"w": expected}, tmp_path / "m.safetensors")
    loaded = straightway.torch.load_file(tmp_path / "m.safetensors")["w"]
    gc.collect()
    noise = [torch.full((1 << 18,), 7.0) for _ in range(32)]
    assert torch.equal(loaded, expected) and noise


def test_reads_land_in_a_tensor(data):
    path, content = data
    tensor = torch.zeros(100_000, dtype=torch.uint8)
    straightway.open(path).read_into(tensor[1000:], 9)
    assert tensor.numpy().tobytes() == bytes(1000) + content[9 : 9 + 99_000]
    with pytest.raises(straightway.ApiMisuse):
        straightway.open(path).read_into(torch.zeros(10, 10).T[1:])


def test_what_the_original_refuses_is_refused(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    base = torch.zeros(10)
    for tensors, error in [
        ({"a": torch.zeros(4, 4).T}, ValueError),
        ({"a": base, "b": base}, RuntimeError),
        ({"a": base, "b": base[2:]}, RuntimeError),
        ({"a": [1, 2]}, ValueError),
    ]:
        for save_file in (safetensors.torch.save_file, straightway.torch.save_file):
            with pytest.raises(error):
                save_file(tensors, path)
    straightway.torch.save_file({"a": base[:5], "b": base[5:]}, path)
    assert not list(tmp_path.glob("*.tmp"))


def test_slices_are_those_of_the_original(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    whole = torch.arange(24 * 7, dtype=torch.bfloat16).reshape(4, 6, 7)
    safetensors.torch.save_file({"a": whole}, path)
    with straightway.safe_open(path, "pt") as ours, safetensors.safe_open(path, "pt") as theirs:
        for index in [0, -1, slice(1, 3), (slice(None), slice(2, 4)), (1, 2), (slice(1, 2), slice(0, 3), slice(2, 5))]:
            got, wanted = ours.get_slice("a")[index], theirs.get_slice("a")[index]
            assert torch.equal(got, wanted) and got.shape == wanted.shape, index
        assert torch.equal(ours.get_tensor("a"), theirs.get_tensor("a"))
        for file in (ours, theirs):
            with pytest.raises(Exception, match="nope"):
                file.get_tensor("nope")
