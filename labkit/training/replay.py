"""What PyTorch's caching allocator would take from the GPU for a traced step, by a replay of its rules.

`torch.cuda.memory_allocated` counts blocks and `torch.cuda.memory_reserved` the segments from which they are cut, so
both exceed the tensors' own bytes. The rules are those of ``c10/cuda/CUDACachingAllocator.cpp`` with its default
settings (no ``PYTORCH_ALLOC_CONF``), on one stream, from an empty cache; sizes are in ``c10/core/AllocatorConfig.h``.
No GPU was at hand: it is tested on sequences worked out by hand, and against one range that others saw on a T4.

Two things are never in it: the CUDA context, which is outside the allocator, and cuBLAS's workspaces.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from labkit.training.ledger import Entry, Ledger

MIB = 2**20
MIN_BLOCK = 512  # kMinBlockSize: every size is rounded up to a multiple of it
SMALL_SIZE = 1 * MIB  # kSmallSize: the largest allocation of the small pool
SMALL_SEGMENT = 2 * MIB  # kSmallBuffer: what the small pool takes from the GPU at a time
MIN_LARGE = 10 * MIB  # kMinLargeAlloc: from here on an allocation gets a segment of its own size
LARGE_SEGMENT = 20 * MIB  # large_segment_size: what the large pool takes for less than that
ROUND_LARGE = 2 * MIB  # kRoundLarge: segments of their own size are rounded up to a multiple of it

# Resident on a T4 after its kernels were loaded, in other people's runs (105 MiB before). Other GPUs: not verified.
T4_CONTEXT_BYTES = 141 * MIB
CUBLAS_HANDLES = 2  # one for the thread of the forward pass, one for autograd's
HOPPER = (9, 0)


def workspace_bytes(capability: tuple[int, int]) -> int:
    """Bytes of cuBLAS's workspaces on a GPU of this compute capability, which PyTorch's allocator holds for it.

    PyTorch's default is ``:4096:2:16:8`` (KiB), from compute capability 9.0 on 32 MiB, for each handle and stream
    (``aten/src/ATen/cuda/CublasHandlePool.cpp``). A training step uses two handles. cuBLASLt's are not counted.
    """
    each = 32 * MIB if capability >= HOPPER else (4096 * 2 + 16 * 8) * 1024
    return CUBLAS_HANDLES * each


@dataclass(slots=True, eq=False)
class Block:
    """A piece of a segment, free or in use; neighbours in the same segment know each other."""

    address: int
    size_bytes: int
    small: bool
    before: Block | None = None
    after: Block | None = None
    free: bool = True

    @property
    def key(self) -> tuple[int, int]:
        """Order in a pool: by size, then by address."""
        return self.size_bytes, self.address


@dataclass
class Allocator:
    """The caching allocator: ``block = allocate(n)``, ``release(block)``, and two counters in bytes.

    Attributes:
        allocated_bytes: what `torch.cuda.memory_allocated` would say: whole blocks.
        reserved_bytes: what `torch.cuda.memory_reserved` would say: whole segments, never given back.
    """

    allocated_bytes: int = 0
    reserved_bytes: int = 0
    _free: dict[bool, list[tuple[int, int, Block]]] = field(default_factory=lambda: {True: [], False: []})
    _addresses: Iterator[int] = field(default_factory=lambda: count(0, 2**40))

    def allocate(self, size_bytes: int) -> Block | None:
        """A block for a tensor of this size; None for an empty tensor, which takes none."""
        if size_bytes == 0:
            return None
        size = rounded(size_bytes)
        block = self._best_fit(size) or self._new_segment(size)
        remaining = block.size_bytes - size
        if remaining >= MIN_BLOCK if block.small else remaining > SMALL_SIZE:
            self._split(block, size)
        block.free = False
        self.allocated_bytes += block.size_bytes
        return block

    def release(self, block: Block | None) -> None:
        """Put a block back, as one with its free neighbours."""
        if block is None:
            return
        self.allocated_bytes -= block.size_bytes
        for other in (block.before, block.after):
            if other is not None and other.free:
                self._take(other)
                _merge(block, other)
        block.free = True
        insort(self._free[block.small], (*block.key, block))

    def _best_fit(self, size: int) -> Block | None:
        """The smallest free block that is large enough, taken out of its pool."""
        pool = self._free[size <= SMALL_SIZE]
        place = bisect_left(pool, (size, -1))
        return pool.pop(place)[2] if place < len(pool) else None

    def _new_segment(self, size: int) -> Block:
        block = Block(next(self._addresses), segment_bytes(size), size <= SMALL_SIZE)
        self.reserved_bytes += block.size_bytes
        return block

    def _split(self, block: Block, size: int) -> None:
        rest = Block(block.address + size, block.size_bytes - size, block.small, before=block, after=block.after)
        if rest.after is not None:
            rest.after.before = rest
        block.size_bytes, block.after = size, rest
        insort(self._free[rest.small], (*rest.key, rest))

    def _take(self, block: Block) -> None:
        pool = self._free[block.small]
        pool.pop(bisect_left(pool, block.key))


def rounded(size_bytes: int) -> int:
    """A request rounded up to a multiple of 512 bytes."""
    return -(-size_bytes // MIN_BLOCK) * MIN_BLOCK


def segment_bytes(size: int) -> int:
    """What the allocator takes from the GPU when no free block fits a rounded request."""
    if size <= SMALL_SIZE:
        return SMALL_SEGMENT
    return LARGE_SEGMENT if size < MIN_LARGE else -(-size // ROUND_LARGE) * ROUND_LARGE


def _merge(block: Block, other: Block) -> None:
    """Make ``other``, a neighbour, part of ``block``."""
    if block.before is other:
        block.address, block.before = other.address, other.before
        if block.before is not None:
            block.before.after = block
    else:
        block.after = other.after
        if block.after is not None:
            block.after.before = block
    block.size_bytes += other.size_bytes


@dataclass(frozen=True)
class Replay:
    """The two counters at every moment of a step's timeline, in bytes (see `labkit.training.timeline.Timeline`)."""

    allocated: list[int]
    reserved: list[int]


def replay(ledger: Ledger, *, loaded: tuple[str, ...] = ("parameters", "quantization_constants", "adapters")) -> Replay:
    """Replay a traced step from an empty cache: the loaded model first, then states and batch, then every event.

    Args:
        ledger: a step's books.
        loaded: kinds of tensors that are there before the optimizer's states.
    """
    events: dict[int, tuple[Entry, bool]] = {}
    there = [entry for entry in ledger.entries if entry.held_at(0)]
    for entry in ledger.entries:
        if entry.since > 0:
            events[entry.since] = entry, True
        if entry.until:
            events[entry.until] = entry, False
    allocator, blocks = Allocator(), {}
    seen = Replay([], [])

    def note() -> None:
        seen.allocated.append(allocator.allocated_bytes)
        seen.reserved.append(allocator.reserved_bytes)

    for first in (True, False):
        for entry in there:
            if (entry.kind in loaded) is first:
                blocks[id(entry)] = allocator.allocate(entry.size_bytes)
        note()
    for index in range(1, len(ledger.curve)):
        entry, appears = events[index]
        if appears:
            blocks[id(entry)] = allocator.allocate(entry.size_bytes)
        else:
            allocator.release(blocks.pop(id(entry)))
        note()
    return seen
