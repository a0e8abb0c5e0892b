"""What the engine tells: ways of bytes, plans, facts. Each prints as text, and as a table where HTML is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{escape(title)}</caption><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


@dataclass(frozen=True)
class Path:
    """The way that bytes took: who moved them, who wrote them finally, and why no better way was taken."""

    transport: str
    landing: str
    bytes: int
    dma: int
    kernel_copy: int
    staged: int
    bounced: int
    cpu_copied: int
    reason: str
    because: str
    operations: int = 1

    @property
    def route(self) -> str:
        """Transport and landing, as policies name them."""
        return f"{self.transport}/{self.landing}"

    def __str__(self) -> str:
        return f"{self.route} ({self.bytes} bytes, {self.bounced} bounced; {self.reason})"

    def _row(self) -> tuple[object, ...]:
        return (self.route, _size(self.bytes), self.bounced, self.cpu_copied, self.operations, f"{self.reason}: {self.because}")

    _HEAD = ("route", "bytes", "bounced", "copied by CPUs", "operations", "reason")

    def _repr_html_(self) -> str:
        return _table("path", self._HEAD, [self._row()])


@dataclass(frozen=True)
class FileReport:
    """What was read of one file. `verified_bytes` lie in chunks that were compared with their checksums; `unverified_bytes` were
    read and not compared."""

    name: str
    ways: list[Path]
    verified_bytes: int = 0
    unverified_bytes: int = 0


@dataclass(frozen=True)
class SaveReport:
    """Where the bytes of a rank's part of a save went: written by a device's DMA or by a copy of the kernel; of them, those that
    were copied into staging memory before, and those that were written from where they were. `linked`: bytes that were not
    written, of files that are links to those of the earlier checkpoint."""

    bytes: int
    dma: int
    kernel_copy: int
    staged: int
    in_place: int
    linked: int = 0

    def __str__(self) -> str:
        moved = f"{self.bytes} bytes: {self.dma} by DMA, {self.kernel_copy} by the kernel"
        linked = f"; {self.linked} linked" if self.linked else ""
        return f"{moved}; {self.staged} staged, {self.in_place} in place{linked}"


@dataclass(frozen=True)
class LoadReport:
    """What a load did. `gap_bytes` were read beside the tensors; `realigned_bytes` were copied once more, because the file has
    them at offsets that are no multiples of their element size. `verification`: whether what was read was `compared` with checksums
    beside the checkpoint, there are `none`, or it was `off`."""

    name: str
    into: str
    files: list[FileReport]
    tensors: int
    tensor_bytes: int
    gap_bytes: int
    realigned_bytes: int
    verification: str = "none"

    def __str__(self) -> str:
        ways = "; ".join(str(way) for file in self.files for way in file.ways)
        return f"{self.name}: {self.tensors} tensors, {self.tensor_bytes} bytes into {self.into}: {ways}"

    def _repr_html_(self) -> str:
        rows = [(file.name, *way._row()) for file in self.files for way in file.ways]
        title = f"{self.name}: {self.tensors} tensors, {_size(self.tensor_bytes)} into {self.into}"
        return _table(title, ("file", *Path._HEAD), rows)


@dataclass(frozen=True)
class Candidate:
    """A route that was looked at."""

    transport: str
    landing: str
    staged: bool
    accepted: bool
    reason: str | None
    because: str | None

    @property
    def route(self) -> str:
        """Transport and landing, as policies name them."""
        return f"{self.transport}/{self.landing}"

    def __str__(self) -> str:
        verdict = "accepted" if self.accepted else f"{self.reason}: {self.because}"
        return f"{self.route}  {verdict}"


@dataclass(frozen=True)
class Plan:
    """Every route for an object and a kind of memory, the best first. `error` says why there is none."""

    name: str
    into: str
    candidates: list[Candidate] = field(default_factory=list)
    error: str | None = None

    @property
    def choice(self) -> Candidate | None:
        """The route that would be taken."""
        return None if self.error else next((c for c in self.candidates if c.accepted), None)

    def __str__(self) -> str:
        lines = [f"{self.name} into {self.into}", *(f"  candidate  {candidate}" for candidate in self.candidates)]
        lines.append(f"  choice     {self.choice.route if self.choice else self.error}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [(c.route, "yes" if c.accepted else "no", c.reason or "", c.because or "") for c in self.candidates]
        return _table(f"{self.name} into {self.into}", ("route", "accepted", "reason", "because"), rows)


@dataclass(frozen=True)
class Fact:
    """One fact of the machine."""

    name: str
    health: str
    value: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.health:<8} {self.name}: {self.value}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Doctor:
    """What the machine can do. `worst`: good, limited or missing."""

    worst: str
    facts: list[Fact]

    def __str__(self) -> str:
        return "\n".join(str(fact) for fact in self.facts)

    def _repr_html_(self) -> str:
        rows = [(fact.name, fact.health, fact.value, fact.remedy) for fact in self.facts]
        return _table("doctor", ("fact", "health", "value", "remedy"), rows)
