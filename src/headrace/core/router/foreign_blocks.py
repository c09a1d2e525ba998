"""What a foreign server's prefix cache holds, in our own digests, from what it says of blocks.

Servers publish the tokens of each block they store, a name of their own for it, and the name of
the block before. Names are opaque (salted hashes), so that one prompt can be compared with it only
by tokens: each name is kept with the digest of our chain up to there (``kvcache/chain.py``), in
units of ``unit`` tokens, which may be several of the server's blocks. One name may be in the cache
more than once (vLLM does not merge equal blocks): copies are counted.

What comes after a block that was never heard of cannot be named by us: an *orphan*. A block that
is stored proves that all blocks before it are there. Source of the events: vLLM,
vllm/distributed/kv_events.py and vllm/v1/core/block_pool.py; SGLang publishes the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, assert_never

from headrace.core.kvcache.chain import TOKEN_BYTES, chain_root, pack
from headrace.errors import InvariantBroken, ProtocolError
from headrace.types import block_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.types import BlockKey, TokenId, Tokens

ServerHash: TypeAlias = int | bytes
"""A server's name of a block and all before it. Its own business, and gone with its process."""

MAX_BLOCKS = 1 << 20
"""Names kept of one server; blocks beyond are not followed. About 300 bytes each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksStored:
    """Consecutive blocks came into the cache. ``group``: which of the model's caches."""

    names: Sequence[ServerHash]
    parent: ServerHash | None
    tokens: Sequence[TokenId]
    block_size: Tokens
    salt: str = ""
    group: int | None = None


@dataclass(frozen=True, slots=True)
class BlocksRemoved:
    """A copy of each of these left the cache."""

    names: Sequence[ServerHash]
    group: int | None = None


@dataclass(frozen=True, slots=True)
class AllCleared:
    """The cache is empty."""


ForeignChange: TypeAlias = BlocksStored | BlocksRemoved | AllCleared


class Delta(NamedTuple):
    """What some changes came to. ``num_orphans``: stored blocks that we cannot name."""

    stored: tuple[BlockKey, ...]
    removed: tuple[BlockKey, ...]
    num_stored: int
    num_orphans: int


def foreign_root(unit: Tokens, salt: str = "") -> bytes:
    """Return what prompts of a foreign server's model are chained to.

    Tenants are not kept apart: the server does not, but for the salt that a client may send.
    """
    given = salt.encode(errors="surrogatepass")
    return chain_root(salt=given, model_identity="", block_size=unit)


@dataclass(slots=True)
class _Block:
    """``digest`` is that of the last whole unit up to here, ``rest`` the packed tokens behind it,
    ``key`` that of a unit which ends with this block. No copies: not known to be there."""

    parent: ServerHash | None
    digest: bytes
    rest: bytes
    key: BlockKey | None
    copies: int = 0


class ForeignBlocks:
    """One server's cache. ``unit``: tokens of one of our keys, a multiple of its block size."""

    def __init__(self, unit: Tokens, *, max_blocks: int = MAX_BLOCKS) -> None:
        self.unit = unit
        self._max_blocks = max_blocks
        self._blocks: dict[ServerHash, _Block] = {}
        self._num_doubtful = 0  # blocks without copies
        self._groups: set[int | None] = set()  # that stores were told of
        self._was: dict[BlockKey, bool] = {}  # of keys touched by the changes at hand
        self._num_stored = 0
        self._num_orphans = 0

    def __len__(self) -> int:
        """Names known."""
        return len(self._blocks)

    @property
    def held(self) -> tuple[BlockKey, ...]:
        """Every key known to be there."""
        blocks = self._blocks.values()
        return tuple(block.key for block in blocks if block.copies and block.key is not None)

    def apply(self, changes: Sequence[ForeignChange]) -> Delta:
        """Take changes, in order. Raises ProtocolError for blocks that do not fit our unit."""
        self._was, self._num_stored, self._num_orphans = {}, 0, 0
        touched: dict[BlockKey, bool] = {}
        for change in changes:
            match change:
                case BlocksStored():
                    self._store(change, touched)
                case BlocksRemoved():
                    self._remove(change, touched)
                case AllCleared():
                    self._clear(touched)
                case _:
                    assert_never(change)
        was = self._was
        return Delta(
            tuple(key for key, held in touched.items() if held and not was[key]),
            tuple(key for key, held in touched.items() if not held and was[key]),
            self._num_stored,
            self._num_orphans,
        )

    def doubt(self) -> None:
        """Changes were missed: nothing is known to be there. Names mean what they meant."""
        for block in self._blocks.values():
            block.copies = 0
        self._num_doubtful = len(self._blocks)

    def forget(self) -> None:
        """It is another process: its names mean nothing, and nothing is there."""
        self._blocks.clear()
        self._groups.clear()
        self._num_doubtful = 0

    def check_integrity(self) -> None:
        """Raise InvariantBroken unless counts agree with what they count, and bounds hold."""
        doubtful = sum(not block.copies for block in self._blocks.values())
        if doubtful != self._num_doubtful:
            raise InvariantBroken(f"{doubtful} blocks without copies, counted {self._num_doubtful}")
        if len(self._blocks) > self._max_blocks:
            raise InvariantBroken(f"{len(self._blocks)} names > {self._max_blocks}")

    def _store(self, event: BlocksStored, touched: dict[BlockKey, bool]) -> None:
        size = event.block_size
        if self.unit % size:
            raise ProtocolError(
                f"its blocks have {size} tokens, of which {self.unit} is no multiple: "
                f"say block-size={size} behind its URL (and those of the same model)"
            )
        self._groups.add(event.group)
        parent, digest, rest = event.parent, foreign_root(self.unit, event.salt), b""
        if parent is not None:
            before = self._blocks.get(parent)
            if before is None:
                self._num_orphans += len(event.names)
                return
            self._prove(parent, touched)
            digest, rest = before.digest, before.rest
        packed, step = pack(event.tokens), size * TOKEN_BYTES
        for place, name in enumerate(event.names):
            tokens = packed[place * step : (place + 1) * step]
            block = self._blocks.get(name) or self._make(name, parent, digest, rest + tokens)
            if block is None:
                self._num_orphans += len(event.names) - place
                return
            self._num_stored += 1
            self._hold(block, touched)
            parent, digest, rest = name, block.digest, block.rest

    def _make(
        self, name: ServerHash, parent: ServerHash | None, digest: bytes, rest: bytes
    ) -> _Block | None:
        """Return a new block without copies, None if there is no room."""
        if len(self._blocks) >= self._max_blocks:
            self._forget_doubtful()
            if len(self._blocks) >= self._max_blocks:
                return None
        key = None
        if len(rest) == self.unit * TOKEN_BYTES:
            digest, rest = sha256(digest + rest).digest(), b""
            key = block_key(digest)
        block = self._blocks[name] = _Block(parent, digest, rest, key)
        self._num_doubtful += 1
        return block

    def _prove(self, name: ServerHash | None, touched: dict[BlockKey, bool]) -> None:
        """A block was stored behind this one: it is there, and so is all before it."""
        while name is not None:
            block = self._blocks.get(name)
            if block is None or block.copies:
                return
            self._hold(block, touched)
            name = block.parent

    def _hold(self, block: _Block, touched: dict[BlockKey, bool]) -> None:
        block.copies += 1
        if block.copies == 1:
            self._num_doubtful -= 1
            self._note(block, touched, held=True)

    def _remove(self, event: BlocksRemoved, touched: dict[BlockKey, bool]) -> None:
        if event.group not in self._groups:
            return
        for name in event.names:
            block = self._blocks.get(name)
            if block is None:
                continue
            if block.copies > 1:
                block.copies -= 1
                continue
            del self._blocks[name]
            if block.copies:
                self._note(block, touched, held=False)
            else:
                self._num_doubtful -= 1

    def _clear(self, touched: dict[BlockKey, bool]) -> None:
        for block in self._blocks.values():
            if block.copies:
                self._note(block, touched, held=False)
        self._blocks.clear()
        self._num_doubtful = 0

    def _forget_doubtful(self) -> None:
        if self._num_doubtful:
            kept = {name: block for name, block in self._blocks.items() if block.copies}
            self._blocks = kept
            self._num_doubtful = 0

    def _note(self, block: _Block, touched: dict[BlockKey, bool], *, held: bool) -> None:
        """Whether a key is there has changed; ``_was`` has how it was before all changes."""
        if block.key is not None:
            self._was.setdefault(block.key, not held)
            touched[block.key] = held
