"""Boxes of dense arrays, cut into pieces that fit into little memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def dense(shape: Sequence[int]) -> list[int]:
    """Strides, in elements, of a dense row-major array."""
    strides, step = [], 1
    for dim in reversed(shape):
        strides.insert(0, step)
        step *= dim
    return strides


def span(sizes: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last of a box that is not empty."""
    return 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides))


def pieces(lengths: list[int], strides: list[int], most: int) -> Iterator[tuple[list[int], list[int]]]:
    """First element and size in each dimension of the pieces of a box that span at most `most` elements each, or have one."""
    dim = next((dim for dim, length in enumerate(lengths) if length > 1), None)
    if dim is None or span(lengths, strides) <= most:
        yield [0] * len(lengths), lengths
        return
    row = span(lengths[dim + 1 :], strides[dim + 1 :])
    rows = max(1, (most - row) // strides[dim] + 1)
    for start in range(0, lengths[dim], rows):
        some = [*lengths[:dim], min(rows, lengths[dim] - start), *lengths[dim + 1 :]]
        for starts, sizes in pieces(some, strides, most):
            yield [*starts[:dim], starts[dim] + start, *starts[dim + 1 :]], sizes
