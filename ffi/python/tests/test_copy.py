"""Copies by several threads."""

from __future__ import annotations

import pytest

import straightway


def test_each_source_is_in_its_target():
    sources = [bytes([n % 251]) * length for n, length in enumerate([1, 4095, (4 << 20) + 1, 0, 13 << 20])]
    targets = [bytearray(len(source)) for source in sources]
    assert straightway.Engine.shared().copy_many(list(zip(sources, targets))) == sum(map(len, sources))
    assert [bytes(target) for target in targets] == sources
    assert straightway.Engine.shared().copy_many([]) == 0


def test_nothing_is_copied_of_what_does_not_fit():
    good, target = (b"12", bytearray(2)), bytearray(4)
    for source, into, text in [
        (b"123", target, "3 bytes, the target 4"),
        (b"", target, "0 bytes, the target 4"),
        (b"1234", b"abcd", "read-only"),
        (memoryview(target)[:3], memoryview(target)[1:], "overlap"),
        (target, target, "overlap"),
        (b"1234", object(), "tells no memory"),
    ]:
        with pytest.raises(straightway.ApiMisuse, match=text):
            straightway.Engine.shared().copy_many([good, (source, into)])
    assert good[1] == bytearray(2) and target == bytearray(4)
