"""Engine, objects, buffers: bytes, ranges, errors, reports."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

import straightway


def test_every_range_has_the_bytes_of_the_file(data):
    path, content = data
    with straightway.open(path) as file:
        assert file.size == len(content)
        for offset, length in [(0, 1), (0, len(content)), (1, 4096), (4095, 2), (len(content) - 1, 1), (12345, 1 << 20)]:
            buffer = file.read(offset, length)
            assert buffer.nbytes == length
            assert bytes(buffer) == content[offset : offset + length] == buffer.tobytes()
            assert buffer.path.bytes == length and buffer.path.operations == 1
        assert bytes(file.read(100)) == content[100:]
        assert bytes(file.read(7, 0)) == b"" and bytes(file.read(len(content))) == b""


def test_reads_in_place_leave_the_rest_of_the_target_alone(data):
    path, content = data
    file = straightway.open(path)
    target = bytearray(b"\xaa" * 10_000)
    way = file.read_into(memoryview(target)[1000:9000], 5)
    assert target == b"\xaa" * 1000 + content[5:8005] + b"\xaa" * 1000
    assert way.bytes == 8000
    buffer = straightway.engine().allocate(100_000)
    file.read_into(buffer.view("U8", [50_000], 25_000), 3)
    assert bytes(buffer) == bytes(25_000) + content[3:50_003] + bytes(25_000)


def test_many_reads_at_once_each_land_where_they_belong(data):
    path, content = data
    file = straightway.open(path)
    targets = [bytearray(3001) for _ in range(500)]
    ways = straightway.engine().read_many([(file, 5003 * n, target) for n, target in enumerate(targets)])
    assert all(target == content[5003 * n : 5003 * n + 3001] for n, target in enumerate(targets))
    assert sum(way.bytes for way in ways) == 500 * 3001
    assert sum(way.operations for way in ways) == 500


@pytest.mark.parametrize(
    ("act", "kind", "builtin"),
    [
        (lambda path: straightway.open(path / "no"), straightway.NotFound, FileNotFoundError),
        (lambda path: straightway.open(path), straightway.WrongKind, OSError),
        (lambda path: straightway.open("moon://bucket/key"), straightway.BadUri, ValueError),
        (lambda path: straightway.open(path / "data").read(1 << 40), straightway.OutOfRange, ValueError),
        (lambda path: straightway.open(path / "data").read(0, 1 << 60), straightway.OutOfRange, ValueError),
        (lambda path: straightway.open(path / "data").read(into="moon"), straightway.ApiMisuse, ValueError),
        (lambda path: straightway.open(path / "data").read(policy="fast"), straightway.ApiMisuse, ValueError),
        (lambda path: straightway.open(path / "data").read(deadline=-1.0), straightway.ApiMisuse, ValueError),
        (lambda path: straightway.open(path / "data").read(into="gpu99"), straightway.NoDevice, OSError),
        (lambda path: straightway.open(path / "data").read_into(bytes(8)), straightway.ApiMisuse, ValueError),
        (lambda path: straightway.open(path / "data").read_into(memoryview(bytearray(8))[::2]), straightway.ApiMisuse, ValueError),
        (lambda path: straightway.open(path / "data").read_into("text"), straightway.ApiMisuse, ValueError),
        (lambda path: straightway.open(path / "data").read_into(bytearray(1 << 26)), straightway.OutOfRange, ValueError),
        (lambda path: straightway.Engine(queue_depth=0), straightway.ApiMisuse, ValueError),
        (lambda path: straightway.Engine(speed=11), straightway.ApiMisuse, ValueError),
        (lambda path: straightway.load_file(path / "data"), straightway.BadFormat, ValueError),
    ],
)
def test_errors_have_a_kind_a_code_and_a_builtin_to_catch(data, act, kind, builtin):
    path, _ = data
    with pytest.raises(kind) as caught:
        act(path.parent)
    error = caught.value
    assert isinstance(error, builtin) and isinstance(error, straightway.Error)
    assert error.kind and error.code > 0 and "\n" not in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.kind, again.remedy) == (kind, str(error), error.kind, error.remedy)


def test_wrong_types_are_type_errors(data):
    path, _ = data
    file = straightway.open(path)
    for act in [lambda: file.read("0"), lambda: file.read(1.5), lambda: straightway.open(7)]:
        with pytest.raises(TypeError):
            act()
    with pytest.raises(OverflowError):
        file.read(-1)


def test_the_system_code_is_the_errno(tmp_path: Path):
    with pytest.raises(straightway.NotFound) as caught:
        straightway.open(tmp_path / "no")
    assert caught.value.errno == 2 and caught.value.system_code == 2
    assert caught.value.location.endswith("/no") and caught.value.verb == "open"


def test_a_demand_that_cannot_be_met_says_why(data):
    path, _ = data
    used = straightway.plan(path).choice.transport
    other = next(name for name in ("preadv2", "io_uring") if name != used)
    with pytest.raises(straightway.PolicyUnmet) as caught:
        straightway.open(path).read(policy=f"require={other}")
    assert caught.value.reasons and isinstance(caught.value, RuntimeError)
    assert straightway.plan(path, policy=f"require={other}").choice is None


def test_closed_things_say_so(data):
    path, _ = data
    with straightway.Engine(reactors=1) as engine:
        file = engine.open(path)
        file.close()
        with pytest.raises(straightway.Closed):
            file.read()
        file = engine.open(path)
        kept = file.read(0, 4096)
    with pytest.raises(straightway.Closed):
        file.read()
    assert len(bytes(kept)) == 4096
    assert repr(file).startswith("<straightway.Object")


def test_an_object_in_the_making_appears_as_a_whole_or_not_at_all(tmp_path: Path):
    engine = straightway.engine()
    path = tmp_path / "new"
    with engine.create(path, 10_000) as new:
        ways = new.write([(0, b"a" * 4096), (4096, bytearray(b"b" * 4096)), (8192, memoryview(b"c" * 1808))])
        assert not path.exists()
    assert path.read_bytes() == b"a" * 4096 + b"b" * 4096 + b"c" * 1808
    assert sum(way.bytes for way in ways) == 10_000
    with pytest.raises(ZeroDivisionError), engine.create(path, 5) as new:
        new.write([(0, b"xxxxx")])
        1 / 0
    assert path.stat().st_size == 10_000
    with pytest.raises(straightway.ApiMisuse):
        new.commit()


def test_reports_print_and_render(data):
    path, _ = data
    plan = straightway.plan(path)
    assert plan.choice is not None and plan.choice.route in str(plan)
    machine = straightway.doctor()
    assert machine.worst in {"good", "limited", "missing"} and any(fact.name == "kernel" for fact in machine.facts)
    buffer = straightway.open(path).read(0, 4096)
    for report in [plan, machine, buffer.path]:
        html = report._repr_html_()
        assert html.startswith("<table>") and html.endswith("</table>") and str(report)
    assert buffer.path.route in repr(buffer) and "4096 bytes" in repr(buffer)


def test_names_in_tables_are_escaped():
    from straightway._reports import Fact, Doctor

    assert "<b>" not in Doctor("good", [Fact("<b>", "good", "&", "")])._repr_html_()


def test_a_committed_object_takes_no_more_writes(tmp_path):
    new = straightway.engine().create(tmp_path / "file", 3)
    new.write([(0, b"abc")])
    new.commit()
    with pytest.raises(straightway.ApiMisuse, match="committed"):
        new.write([(0, b"xyz")])
    assert (tmp_path / "file").read_bytes() == b"abc"


def test_the_shared_engine_is_there_again_after_somebody_closed_it(data):
    path, content = data
    with straightway.engine() as engine:
        assert bytes(engine.open(path).read()) == content
    with pytest.raises(straightway.Closed):
        engine.open(path)
    assert bytes(straightway.open(path).read()) == content
