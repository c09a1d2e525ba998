"""Where requests of one kind belong: a key of what they have in common."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from headrace.types import block_key

if TYPE_CHECKING:
    from headrace.core.balancer.policy import ReplicaView
    from headrace.types import Request

KEYED_TOKENS = 256
"""Of a prompt without a session, how much names it: as in the ``prefix_hash`` of SGLang's gateway
(sgl-model-gateway/src/policies). The first block alone is often a template that all share."""

DEFAULT_BLOCK = 16  # tokens, of a replica that does not say


def home_key(request: Request, view: ReplicaView) -> int | None:
    """Return 64 bits for the session, else for the beginning of the prompt; None for neither.

    A prompt shorter than a block has no digest, and nothing worth going back to.
    """
    if request.session:
        return int.from_bytes(sha256(request.session.encode()).digest()[:8], "little")
    if not request.chain:
        return None
    block = KEYED_TOKENS // (view.facts.block_size or DEFAULT_BLOCK)
    return block_key(request.chain[min(max(block, 1), len(request.chain)) - 1])
