"""What the ranks of a load do for each other: who reads what, and how the others get it.

    what all ranks want ── share_out ──► each rank: what it need not read, what passes between whom
    offers: where each rank will have what it reads ──► each rank reads its part in waves, and tells in its memory how far it is;
    beside that a thread copies what others have read ──► agree: nobody failed, everybody has it

A rank copies what another one read straight out of that one's memory, if both are processes of one machine and the kernel lets
it. That it is the right process is asked first: its memory must hold a secret that the process group told. Where that does not
work the process group carries the bytes, once all have read. A rank that failed or died is an error on all: no load ends before
all agree.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import itertools
import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Union

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

from .. import _errors
from .._native import Neighbour
from . import _boxes

WORD_BYTES = 8
SECRET_BYTES = 32
# What a rank's word says when it failed.
FAILED = -1
# Bytes that a rank reads before it tells how far it is: the others copy while it reads on.
WAVE_BYTES = 64 << 20
# Bytes on average of the pieces that items are cut into where ranks want each other's rows: smaller ones would cost more to tell
# and to read than to read twice.
PIECE_BYTES = 512 << 10
# An item of more bytes that several ranks want is cut into pieces of this many: each then reads about as much as the others, and they
# copy the first pieces while the last are read. Half of a wave.
LONG_BYTES = 32 << 20
# Memory for copies of what another rank read, where the destination is strided or in a GPU, in bytes.
COPY_BYTES = 64 << 20
# Seconds between two looks at the words of ranks that have nothing new.
LOOK_S = 0.001


@dataclasses.dataclass
class Reads:
    """How this rank reads."""

    # Reads items into their destinations, and commits them.
    read: Callable[[list[Any]], None]
    # Where an item lies, to read in that order.
    place: Callable[[Any], tuple[str, int]]
    # What was seen of chunks of files that were not seen whole.
    partials: Callable[[], list[Any]]
    # Compares what this rank (a number) and all have seen with checksums.
    compare: Callable[[int, list[list[Any]]], None]


@dataclasses.dataclass
class Share:
    """What a rank does for others and they for it: a part of the plan that the coordinator makes."""

    # Ranks of the load.
    world: int
    # Items of this rank's plan.
    items: int
    # Items of this rank that another rank reads, by position.
    received: set[int]
    # (number, reader, [(rank, position of the item in its plan)]) by number, only those that concern this rank.
    exchanges: list[tuple[int, int, list[tuple[int, int]]]]


# What a rank wants of a chunk: tensor, place of the chunk in it, first element and count in each dimension, bytes of an element. Ranks
# send each other many of them, so it is a plain tuple. Nothing where it wants bytes.
Want = Union[tuple[str, Union[tuple[int, ...], None], tuple[int, ...], tuple[int, ...], int], None]


def wants_of(items: Sequence[ReadItem], item_bytes: Callable[[ReadItem], int]) -> list[Want]:
    """What items ask for."""
    return [None if item.type == LoadItemType.BYTE_IO else _want(item, item_bytes(item)) for item in items]


def _want(item: ReadItem, item_bytes: int) -> Want:
    index = item.storage_index
    place = None if index.offset is None else tuple(index.offset)
    return index.fqn, place, tuple(item.storage_offsets), tuple(item.lengths), item_bytes


def _marks(some: Sequence[tuple[int, int, Want]]) -> dict[Any, list[int]]:
    """The rows at which items of a box are cut: where an item wants some rows that others want and some that those do not, and in
    long ones that several want. Two items of the same columns want the same rows or none in common then, unless the pieces would
    be small."""
    edges: dict[Any, set[int]] = {}
    widths: dict[Any, int] = {}
    takers: dict[Any, set[int]] = {}
    for rank, _, want in some:
        _, _, starts, sizes, item_bytes = want
        if sizes and math.prod(sizes):
            box = _box(want)
            widths[box] = item_bytes * math.prod(sizes[1:])
            edges.setdefault(box, set()).update((starts[0], starts[0] + sizes[0]))
            takers.setdefault(box, set()).add(rank)
    marks: dict[Any, list[int]] = {}
    for box, found in edges.items():
        first, last, width = min(found), max(found), widths[box]
        rows: set[int] = set()
        # Two are the ends of all items.
        if len(found) > 2 and (last - first) * width >= PIECE_BYTES * (len(found) - 1):
            rows = found
        if len(takers[box]) > 1 and (last - first) * width > LONG_BYTES:
            rows = rows.union(range(first, last, max(1, LONG_BYTES // width)))
        if rows:
            marks[box] = sorted(rows)
    return marks


def _box(want: Want) -> tuple[Any, ...]:
    """Its chunk and its place in it, without the rows."""
    name, place, starts, sizes, _ = want
    return name, place, starts[1:], sizes[1:]


def _ends(want: Want, marks: dict[Any, list[int]]) -> list[int] | None:
    """First rows of its pieces, and the row behind the last; nothing if it is not cut."""
    rows = marks.get(_box(want)) if marks else None
    if rows is None or not math.prod(want[3]):
        return None
    first, last = want[2][0], want[2][0] + want[3][0]
    inner = rows[bisect.bisect_right(rows, first) : bisect.bisect_left(rows, last)]
    return [first, *inner, last] if inner else None


def cut(items: Sequence[ReadItem], cuts: dict[int, list[int]]) -> list[ReadItem]:
    """Items by position, some of them in pieces of their rows."""
    pieces: list[ReadItem] = []
    for at, item in enumerate(items):
        ends = cuts.get(at)
        if ends is None:
            pieces.append(item)
        else:
            pieces += [_rows(item, start - ends[0], end - start) for start, end in itertools.pairwise(ends)]
    return pieces


def _rows(item: ReadItem, at: int, count: int) -> ReadItem:
    """So many rows of an item, from one of them on."""

    def moved(place: Sequence[int]) -> torch.Size:
        return torch.Size([place[0] + at, *place[1:]])

    return dataclasses.replace(
        item,
        dest_offsets=moved(item.dest_offsets),
        storage_offsets=moved(item.storage_offsets),
        lengths=torch.Size([count, *item.lengths[1:]]),
    )


def share_out(of_ranks: Sequence[Sequence[Want]]) -> list[tuple[dict[int, list[int]], Share]]:
    """Gives each range that several ranks want to the one of them that has the fewest bytes to read so far. For each rank: where its
    items are to be cut, for `cut`, and its share, in which positions are those of the pieces."""
    load = [0] * len(of_ranks)
    cuts: list[dict[int, list[int]]] = [{} for _ in of_ranks]
    counts = [len(wants) for wants in of_ranks]
    # Most chunks are one rank's own, and that is all that has to be known of them.
    owners: dict[Any, int | None] = {}
    for rank, wants in enumerate(of_ranks):
        for want in wants:
            if want is not None:
                owners[want[:2]] = rank if owners.get(want[:2], rank) == rank else None
    common: list[tuple[int, int, Want]] = []
    for rank, wants in enumerate(of_ranks):
        for at, want in enumerate(wants):
            if want is None:
                continue
            if owners[want[:2]] is None:
                common.append((rank, at, want))
            else:
                load[rank] += want[4] * math.prod(want[3])
    marks = _marks(common)
    sizes: dict[Any, int] = {}
    wanted: dict[Any, list[tuple[int, int]]] = {}
    more = [0] * len(of_ranks)
    for rank, at, want in common:
        name, place, starts, lengths, item_bytes = want
        ends = _ends(want, marks)
        if ends is None:
            keys = [(name, place, starts, lengths)]
        else:
            cuts[rank][at] = ends
            pairs = itertools.pairwise(ends)
            keys = [(name, place, (start, *starts[1:]), (end - start, *lengths[1:])) for start, end in pairs]
        for number, key in enumerate(keys):
            sizes[key] = item_bytes * math.prod(key[3])
            wanted.setdefault(key, []).append((rank, at + more[rank] + number))
        more[rank] += len(keys) - 1
    shares = [Share(len(of_ranks), count + added, set(), []) for count, added in zip(counts, more)]
    # The largest first: so the loads come out even.
    ordered = sorted(wanted.items(), key=lambda entry: -sizes[entry[0]])
    for number, (key, takers) in enumerate(ordered):
        takers = list({rank: (rank, position) for rank, position in reversed(takers)}.values())
        reader, _ = min(takers, key=lambda taker: load[taker[0]])
        load[reader] += sizes[key]
        if len(takers) > 1:
            for rank, position in takers:
                shares[rank].exchanges.append((number, reader, takers))
                if rank != reader:
                    shares[rank].received.add(position)
    return list(zip(cuts, shares))


def _of_one_type(share: Share, offers: list[_Offer], me: int) -> Share:
    """The same without what a rank wants as another type than its reader has: that rank reads it by itself."""
    received, exchanges = set(share.received), []
    for number, reader, takers in share.exchanges:
        same = [(rank, at) for rank, at in takers if offers[rank].types[number] == offers[reader].types[number]]
        if any(rank == me for rank, _ in same):
            exchanges.append((number, reader, same))
        else:
            received.discard(dict(takers)[me])
    return dataclasses.replace(share, received=received, exchanges=exchanges)


@dataclasses.dataclass
class _Offer:
    """What a rank tells the others before it reads."""

    pid: int
    # Where its memory holds the word that says how many of the exchanges in `addresses` it has read, or `FAILED`; behind it, a
    # secret.
    word_at: int
    secret: bytes
    # Element type of its destination of each exchange, by number.
    types: dict[int, str]
    # Address of what it reads for others, by number, in the order of its reads: only of dense host memory.
    addresses: dict[int, int]
    # Numbers whose destination here lies where the load's own process group carries bytes from device to device.
    direct: set[int]


class _Word:
    """A word in this process's memory that others may look at, with the secret by which they know it."""

    def __init__(self) -> None:
        self._memory = torch.zeros(WORD_BYTES + SECRET_BYTES, dtype=torch.uint8)
        self.secret = os.urandom(SECRET_BYTES)
        self._memory[WORD_BYTES:] = torch.frombuffer(bytearray(self.secret), dtype=torch.uint8)
        self._count = self._memory[:WORD_BYTES].view(torch.int64)

    @property
    def address(self) -> int:
        return self._memory.data_ptr()

    def set(self, count: int) -> None:
        self._count[0] = count


@dataclasses.dataclass
class _Piece:
    """What this rank copies out of another one's memory."""

    # It is there when the other rank's word is larger.
    index: int
    # Of its bytes, dense.
    address: int
    # Bytes if it is dense and in host memory, else the tensor.
    target: torch.Tensor


class _Pull(threading.Thread):
    """Copies pieces as soon as their readers have them."""

    def __init__(self, path: str, offers: list[_Offer], pieces: dict[int, list[_Piece]], timeout: float):
        super().__init__(name="straightway-pull", daemon=True)
        self._path, self._offers, self._timeout = path, offers, timeout
        self._left = {reader: collections.deque(sorted(some, key=lambda piece: piece.index)) for reader, some in pieces.items()}
        self._ended = threading.Event()
        self.failed: BaseException | None = None

    def give_up(self) -> None:
        self._ended.set()

    def run(self) -> None:
        try:
            self._all()
        except BaseException as error:
            self.failed = error

    def _all(self) -> None:
        last = time.monotonic()
        while self._left and not self._ended.is_set():
            moved = [self._from(reader) for reader in list(self._left)]
            self._left = {reader: some for reader, some in self._left.items() if some}
            if any(moved):
                last = time.monotonic()
            elif time.monotonic() - last > self._timeout:
                text = f"read {self._path} failed: rank {min(self._left)} read nothing for {self._timeout} s; look at its log"
                raise _errors.new("cancelled", text, self._path)
            else:
                self._ended.wait(LOOK_S)

    def _from(self, reader: int) -> bool:
        offer, left = self._offers[reader], self._left[reader]
        seen = bytearray(WORD_BYTES)
        other = Neighbour(offer.pid)
        other.read_many([(offer.word_at, seen)])
        count = int.from_bytes(seen, sys.byteorder, signed=True)
        if count == FAILED:
            # Its own words come with the agreement.
            self.give_up()
            return False
        ready = []
        while left and left[0].index < count:
            ready.append(left.popleft())
        other.read_many([(piece.address, piece.target) for piece in ready if _is_plain(piece.target)])
        for piece in ready:
            if not _is_plain(piece.target):
                self._in_copies(other, piece)
        return bool(ready)

    def _in_copies(self, other: Neighbour, piece: _Piece) -> None:
        at = piece.address
        for part in _parts(piece.target):
            if self._ended.is_set():
                return
            copy = torch.empty(part.shape, dtype=part.dtype)
            other.read_many([(at, _flat(copy))])
            part.copy_(copy)
            at += copy.numel() * copy.element_size()
        if piece.target.is_cuda:
            # Whoever uses it next may have another stream than this thread.
            torch.cuda.current_stream(piece.target.device).synchronize()


# By the process group of the load, then by the seconds that a rank waits: made once, because each has sockets and threads. Counted by
# how many there were. Torch's register keeps them until `destroy_process_group`; kept longer, their threads would run on into the
# interpreter's end, where one that lets go of a tensor ends the process (std::terminate).
_GROUPS: weakref.WeakKeyDictionary[
    dist.ProcessGroup, tuple[weakref.WeakValueDictionary[float, dist.ProcessGroup], Iterator[int]]
] = weakref.WeakKeyDictionary()


def _group_beside(base: dist.ProcessGroup, ranks: list[int], timeout: float) -> dist.ProcessGroup:
    """A gloo group of the same ranks, in which a rank waits so many seconds."""
    made, numbers = _GROUPS.setdefault(base, (weakref.WeakValueDictionary(), itertools.count()))
    group = made.get(timeout)
    if group is None:
        wait = timedelta(seconds=timeout)
        if base is dist.group.WORLD:
            group = dist.new_group(ranks, timeout=wait, backend="gloo")
        else:
            # `new_group` counts groups in every process that calls it. If only members called it, the next group of all ranks would
            # have a different name on others, and they would never meet.
            name = f"straightway-{base.group_name}-{next(numbers)}"
            store, me = distributed_c10d._get_default_store(), dist.get_rank(base)
            group, _ = distributed_c10d._new_process_group_helper(len(ranks), me, ranks, "gloo", store, name, timeout=wait)
            distributed_c10d._world.pg_group_ranks[group] = {rank: at for at, rank in enumerate(ranks)}
        made[timeout] = group
    return group


def _no_group() -> None:
    return None


def _forget_group(base: dist.ProcessGroup, timeout: float) -> None:
    if base in _GROUPS:
        _GROUPS[base][0].pop(timeout, None)


class Exchange:
    """Reads together: one load after the other. `from_memory` and `from_group` count the bytes of the last one that other ranks
    read, by how they came here; `why_group` says why they did not all come from memory."""

    def __init__(self, process_group: dist.ProcessGroup | None, timeout: float):
        self._path = ""
        self._process_group = process_group
        self._timeout = timeout
        # As `_GROUPS`, it does not keep it.
        self._group: Callable[[], dist.ProcessGroup | None] = _no_group
        self._word: _Word | None = None
        # What this rank's part of the last load raised.
        self.failed: BaseException | None = None
        self.forget()

    def forget(self) -> None:
        self.from_memory = 0
        self.from_group = 0
        self.why_group = ""

    def begin(self, path: str, act: Callable[[], Any]) -> tuple[int, list[Any]]:
        """What every rank does before a load, or none has done: this rank's number, and what it came to on all of them."""
        self._path = path
        group = self._meet(None)
        return dist.get_rank(group), self._all(group, act)

    def run(self, path: str, plan: LoadPlan, planner: LoadPlanner, reads: Reads) -> None:
        """Reads this rank's part of `path`, gives and takes."""
        self._path, self.failed = path, None
        share: Share = plan.storage_data
        # Here and not earlier: that the plans are there says that no rank has failed before.
        group = self._meet(share.world)
        # Kept until the next load: others may look at it when this rank has failed.
        self._word = word = _Word()
        Neighbour.admit_siblings()
        try:
            self._run(group, (share, plan, planner), reads, word)
        except BaseException as error:
            word.set(FAILED)
            self.failed = error
            raise
        finally:
            Neighbour.admit_nobody()

    def _run(self, group: dist.ProcessGroup, load: tuple[Share, LoadPlan, LoadPlanner], reads: Reads, word: _Word) -> None:
        share, plan, planner = load
        me = dist.get_rank(group)
        failed: BaseException | None = None
        offer = _Offer(os.getpid(), word.address, word.secret, {}, {}, set())
        waves: list[list[int]] = []
        targets: dict[int, torch.Tensor] = {}
        try:
            waves = self._plan(me, load, reads, (offer, targets))
        except BaseException as error:
            failed = error
        offers: list[_Offer] = self._agree(group, failed, offer)
        share = _of_one_type(share, offers, me)
        far = self._read_and_pull((share, plan, group), reads, (waves, word), (offers, targets))
        if far:
            self._all(group, lambda: self._by_group(group, (share, far, offers), targets))
        for number, reader, takers in share.exchanges:
            if reader != me:
                planner.commit_tensor(plan.items[dict(takers)[me]], targets[number])

    def _read_and_pull(
        self,
        load: tuple[Share, LoadPlan, dist.ProcessGroup],
        reads: Reads,
        told: tuple[list[list[int]], _Word],
        known: tuple[list[_Offer], dict[int, torch.Tensor]],
    ) -> set[tuple[int, int]]:
        """Gives (rank, number) of what ranks cannot copy out of their readers' memory."""
        (share, plan, group), (waves, word), (offers, targets) = load, told, known
        me = dist.get_rank(group)
        failed: BaseException | None = None
        pull: _Pull | None = None
        far: list[tuple[int, int]] = []
        seen: list[Any] = []
        try:
            far = self._far(me, share, offers)
            pull = _Pull(self._path, offers, self._pieces(me, share, (offers, set(far)), targets), self._timeout)
            pull.start()
            self._read((share, plan), reads, waves, word)
            pull.join()
            seen = reads.partials()
        # KeyboardInterrupt too: the others are told, and no thread goes on writing into tensors of a load that is over.
        except BaseException as error:
            failed, seen = error, []
            word.set(FAILED)
            if pull is not None:
                pull.give_up()
                if pull.ident is not None:
                    pull.join()
        of_all = self._agree(group, failed or (pull and pull.failed), (seen, far))
        if any(some for some, _ in of_all):
            self._all(group, lambda: reads.compare(me, [some for some, _ in of_all]))
        return {pair for _, pairs in of_all for pair in pairs}

    def _all(self, group: dist.ProcessGroup, act: Callable[[], Any]) -> list[Any]:
        """What every rank does, or none has done; what it came to on each."""
        failed: BaseException | None = None
        word = None
        try:
            word = act()
        except BaseException as error:
            failed = error
        return self._agree(group, failed, word)

    def _plan(
        self, me: int, load: tuple[Share, LoadPlan, LoadPlanner], reads: Reads, out: tuple[_Offer, dict[int, torch.Tensor]]
    ) -> list[list[int]]:
        """Waves of items, by position, that this rank reads for others and itself; fills in what it offers, and its destinations."""
        (share, plan, planner), (offer, targets) = load, out
        if len(plan.items) != share.items:
            text = f"the planner's finish_plan gave {len(plan.items)} items, the plan of all ranks has {share.items}"
            text += "; give those, or load without share"
            raise _errors.new("api_misuse", text, self._path)
        mine, position = [], {}
        for number, reader, takers in share.exchanges:
            position[number] = dict(takers)[me]
            item = plan.items[position[number]]
            targets[number] = planner.resolve_tensor(item).detach()
            offer.types[number] = str(targets[number].dtype)
            if self._is_direct(targets[number]):
                offer.direct.add(number)
            if reader == me:
                mine.append((reads.place(item), number))
        waves: list[list[int]] = []
        size = WAVE_BYTES
        for _, number in sorted(mine):
            if size >= WAVE_BYTES:
                waves.append([])
                size = 0
            target = targets[number]
            waves[-1].append(position[number])
            size += target.numel() * target.element_size()
            offer.addresses[number] = target.data_ptr() if target.is_cpu and target.is_contiguous() else 0
        return waves

    def _read(self, load: tuple[Share, LoadPlan], reads: Reads, waves: list[list[int]], word: _Word) -> None:
        share, plan = load
        done = 0
        for wave in waves:
            reads.read([plan.items[at] for at in wave])
            done += len(wave)
            word.set(done)
        others = share.received.union(*waves)
        reads.read([item for at, item in enumerate(plan.items) if at not in others])

    def _meet(self, world: int | None) -> dist.ProcessGroup:
        group = self._group()
        if group is None:
            base = self._process_group or dist.group.WORLD
            ranks = dist.get_process_group_ranks(base)
            if world is not None and len(ranks) != world:
                text = f"the load has {world} ranks, the reader's process group {len(ranks)}; give both the same"
                raise _errors.new("api_misuse", text, self._path)
            try:
                group = _group_beside(base, ranks, self._timeout)
            except Exception as cause:
                raise self._no_answer() from cause
            self._group = weakref.ref(group)
        return group

    def _no_answer(self) -> Exception:
        text = f"read {self._path} failed: a rank did not answer within {self._timeout} s; look at its log"
        return _errors.new("cancelled", text, self._path)

    def _agree(self, group: dist.ProcessGroup, failed: BaseException | None, word: Any) -> list[Any]:
        """Every rank's word; an error on every rank if one of them failed or does not answer in time."""
        words: list[Any] = [None] * dist.get_world_size(group)
        mine = None
        if failed is not None:
            mine = (getattr(failed, "kind", ""), f"rank {dist.get_rank()}: {str(failed) or type(failed).__name__}")
        try:
            dist.all_gather_object(words, (mine, word), group=group)
        except Exception as cause:
            # What is left of the group is of no use to a later load.
            _forget_group(self._process_group or dist.group.WORLD, self._timeout)
            self._group = _no_group
            raise self._no_answer() from (failed or cause)
        if failed is not None:
            raise failed
        others = [error for error, _ in words if error is not None]
        if others:
            # Damage is the same for all; what else another rank failed by is not this one's error.
            kind = "checksum_mismatch" if any(kind == "checksum_mismatch" for kind, _ in others) else "cancelled"
            text = f"read {self._path} failed on another rank: {'; '.join(text for _, text in others)}"
            raise _errors.new(kind, text, self._path)
        return [word for _, word in words]

    def _far(self, me: int, share: Share, offers: list[_Offer]) -> list[tuple[int, int]]:
        """(this rank, number) of what it cannot copy out of the reader's memory."""
        reachable: dict[int, bool] = {}
        far = []
        for number, reader, _ in share.exchanges:
            if reader == me:
                continue
            if reader not in reachable:
                reachable[reader] = self._is_near(offers[reader])
            address = offers[reader].addresses.get(number, 0)
            if reachable[reader] and not address:
                self.why_group = self.why_group or "what another rank read is in a GPU, or strided, or empty"
            if not (reachable[reader] and address):
                far.append((me, number))
        return far

    def _is_near(self, offer: _Offer) -> bool:
        seen = bytearray(SECRET_BYTES)
        try:
            Neighbour(offer.pid).read_many([(offer.word_at + WORD_BYTES, seen)])
        except Exception as cause:
            self.why_group = str(cause)
            return False
        if seen != offer.secret:
            self.why_group = f"process {offer.pid} of this machine is not the other rank"
        return seen == offer.secret

    def _pieces(
        self, me: int, share: Share, known: tuple[list[_Offer], set[tuple[int, int]]], targets: dict[int, torch.Tensor]
    ) -> dict[int, list[_Piece]]:
        """What comes from memory, by the rank that reads it."""
        offers, far = known
        index = [{number: at for at, number in enumerate(offer.addresses)} for offer in offers]
        pieces: dict[int, list[_Piece]] = {}
        for number, reader, _ in share.exchanges:
            target = targets[number]
            if reader != me and (me, number) not in far and target.numel():
                whole = _flat(target) if _is_plain(target) else target
                pieces.setdefault(reader, []).append(_Piece(index[reader][number], offers[reader].addresses[number], whole))
                self.from_memory += target.numel() * target.element_size()
        return pieces

    def _is_direct(self, tensor: torch.Tensor) -> bool:
        """Whether the process group of the load moves such tensors without the host: NCCL does."""
        if not tensor.is_cuda:
            return False
        return "cuda:nccl" in dist.get_backend_config(self._process_group or dist.group.WORLD)

    def _by_group(
        self, group: dist.ProcessGroup, known: tuple[Share, set[tuple[int, int]], list[_Offer]], targets: dict[int, torch.Tensor]
    ) -> None:
        (share, far, offers), me = known, dist.get_rank(group)
        for number, reader, takers in share.exchanges:
            away = [rank for rank, _ in takers if (rank, number) in far]
            if not away or me not in (reader, *away):
                continue
            # All of them see the same offers, so they take the same group.
            direct = all(number in offers[rank].direct for rank in (reader, *away))
            used = (self._process_group or dist.group.WORLD) if direct else group
            for part in _parts(targets[number]):
                # This rank's own is as it was read, by now.
                plain = part
                if not (part.is_contiguous() and (direct or part.is_cpu)):
                    where = part.device if direct else "cpu"
                    plain = torch.empty(part.shape, dtype=part.dtype, device=where)
                    if reader == me:
                        plain.copy_(part)
                _pass_on(_flat(plain), used, (reader, away, share.world))
                if me != reader:
                    self.from_group += plain.nbytes
                    if plain is not part:
                        part.copy_(plain)
        for device in {tensor.device for tensor in targets.values() if tensor.is_cuda}:
            # NCCL only queues; what failed shows itself here.
            torch.cuda.current_stream(device).synchronize()


def _pass_on(moved: torch.Tensor, group: dist.ProcessGroup, among: tuple[int, list[int], int]) -> None:
    """From the reader to the ranks that are away: all that there are, or some."""
    (reader, away, world), me = among, dist.get_rank(group)
    if len(away) + 1 == world:
        dist.broadcast(moved, group=group, group_src=reader)
    elif me == reader:
        for work in [dist.isend(moved, group=group, group_dst=rank) for rank in away]:
            work.wait()
    else:
        dist.recv(moved, group=group, group_src=reader)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether its bytes lie in host memory as they are moved."""
    return tensor.is_contiguous() and tensor.is_cpu


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a dense tensor, shared."""
    return tensor.reshape(-1).view(torch.uint8)


def _parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Views of a tensor, each of at most `COPY_BYTES` (or of one element): one behind the other in row-major order."""
    if tensor.numel() == 0:
        return
    lengths = list(tensor.shape)
    for starts, sizes in _boxes.pieces(lengths, _boxes.dense(lengths), COPY_BYTES // tensor.element_size()):
        yield tensor[tuple(slice(at, at + size) for at, size in zip(starts, sizes))]
