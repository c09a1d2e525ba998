"""What two engines say to each other on a connection for KV blocks.

::

    both, first       magic 8 | what all blocks have in common, as a segment's header (64 bytes)
    borrower, often   magic 4 | count u32 | digest 32, ``count`` times
    lender, to each   record, at most ``count`` times: magic 4 | digest 32 | checksum 16 | zeros, to
                      64 bytes | block
                      fewer than that: magic 4 | zeros, to 64 bytes

Whoever finds another header than its own closes the connection: another model, precision, size of
blocks or version has nothing to lend. A record is that of server/kv_tiers/segment.py, and nothing
is believed before its checksum was right. Numbers are little-endian.

Sockets block, with timeouts: both ends are threads beside the steps, so that megabytes delay no
frame with tokens.
"""

from __future__ import annotations

import struct
from hmac import compare_digest
from typing import TYPE_CHECKING, Protocol

from headrace.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.server.kv_tiers.segment import BlockFormat

HELLO = b"HRKVNET\1"
ASK = b"HRQ1"
BLOCK = b"HRB1"
END = b"HRE1"
HEAD_BYTES = 64
DIGEST_BYTES = 32
MAX_ASKED = 4096
"""Digests in one question: 128 KiB."""

_ASK = struct.Struct("<4sI")
_RECORD = struct.Struct("<4s32s16s")


class Peer(Protocol):
    """The part of a socket that is used here."""

    def sendall(self, data: bytes | memoryview, /) -> None:
        """Send all of it. Raises OSError."""
        ...

    def recv_into(self, target: memoryview, /) -> int:
        """Receive some bytes; 0 at the end. Raises OSError."""
        ...


def greet(peer: Peer, form: BlockFormat) -> None:
    """Exchange headers. Raises ProtocolError if the other's blocks are of another kind."""
    own = HELLO + form.header
    peer.sendall(own)
    if receive(peer, len(own)) != own:
        raise ProtocolError("the neighbour has another model, precision or version")


def ask(peer: Peer, digests: Sequence[bytes]) -> None:
    """Ask for blocks by their digests, in order."""
    peer.sendall(_ASK.pack(ASK, len(digests)) + b"".join(digests))


def receive_question(peer: Peer) -> list[bytes]:
    """Return the digests that a borrower asks for. Raises ProtocolError, ConnectionError."""
    magic, count = _ASK.unpack(receive(peer, _ASK.size))
    if magic != ASK or count > MAX_ASKED:
        raise ProtocolError(f"a question of {count} blocks; {MAX_ASKED} are allowed")
    digests = receive(peer, count * DIGEST_BYTES)
    return [digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES)]


def send_block(peer: Peer, form: BlockFormat, digest: bytes, block: memoryview) -> None:
    """Lend one block."""
    head = _RECORD.pack(BLOCK, digest, form.checksum(digest, block))
    peer.sendall(head.ljust(HEAD_BYTES, b"\0"))
    peer.sendall(block)


def send_end(peer: Peer) -> None:
    """Say that the rest of what was asked for is not here."""
    peer.sendall(END.ljust(HEAD_BYTES, b"\0"))


def receive_block(peer: Peer, form: BlockFormat, digest: bytes, block: memoryview) -> bool:
    """Fill ``block`` with what was asked for; False if the lender has no more.

    Raises ProtocolError for anything else, a wrong checksum included.
    """
    head = receive(peer, HEAD_BYTES)
    magic, named, checksum = _RECORD.unpack_from(head)
    if magic == END:
        return False
    if (magic, named) != (BLOCK, digest):
        raise ProtocolError("the neighbour sent something that was not asked for")
    receive_into(peer, block)
    if not compare_digest(checksum, form.checksum(digest, block)):
        raise ProtocolError("a block from a neighbour is damaged")
    return True


def receive(peer: Peer, count: int) -> bytes:
    """Return exactly ``count`` bytes. Raises ConnectionError if the other ends before."""
    data = bytearray(count)
    receive_into(peer, memoryview(data))
    return bytes(data)


def receive_into(peer: Peer, target: memoryview) -> None:
    """Fill ``target``. Raises ConnectionError if the other ends before."""
    done = 0
    while done < len(target):
        count = peer.recv_into(target[done:])
        if not count:
            raise ConnectionError("the neighbour closed the connection")
        done += count
