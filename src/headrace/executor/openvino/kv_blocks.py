"""The key and value caches: tensors that belong to us, in blocks that the scheduler hands out.

A block is the same index into every layer's key cache and value cache; with an 8-bit cache its
scales lie inside it, so blocks can be copied, read out and written back as plain bytes. The
memory is anonymous pages: zero at first, and of blocks that were never used, no cost.
"""

from __future__ import annotations

import math
import mmap
from typing import TYPE_CHECKING

import numpy as np
import openvino as ov

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from headrace.types import BlockId


class KvBlocks:
    """Blocks over the caches of all layers, each cache given as bytes, [num_blocks, bytes]."""

    def __init__(self, caches: Sequence[npt.NDArray[np.uint8]]) -> None:
        self._caches = tuple(caches)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all caches."""
        return sum(cache.shape[1] for cache in self._caches)

    def copy(self, pairs: Iterable[tuple[BlockId, BlockId]]) -> None:
        """Copy whole blocks (source, target), in order."""
        for source, target in pairs:
            for cache in self._caches:
                cache[target] = cache[source]

    def read(self, blocks: Sequence[BlockId]) -> npt.NDArray[np.uint8]:
        """Return copies of whole blocks, [len(blocks), block_bytes]."""
        chosen = np.array(blocks, np.intp)
        return np.concatenate([cache[chosen] for cache in self._caches], axis=1)

    def write(self, blocks: Sequence[BlockId], content: npt.NDArray[np.uint8]) -> None:
        """Overwrite whole blocks. Raises ValueError if the content has another shape."""
        if content.shape != (len(blocks), self.block_bytes):
            raise ValueError(
                f"content of {len(blocks)} blocks must have shape "
                f"{(len(blocks), self.block_bytes)}, not {content.shape}"
            )
        chosen, start = np.array(blocks, np.intp), 0
        for cache in self._caches:
            end = start + cache.shape[1]
            cache[chosen] = content[:, start:end]
            start = end


_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def allocate(port: ov.Output, num_blocks: int) -> tuple[ov.Tensor, npt.NDArray[np.uint8]]:
    """Return a cache for an input of a compiled graph, as a tensor and as bytes.

    The graph says the type and the shape of a block; the tensor lives on the array's memory.
    """
    dimensions = port.get_partial_shape()
    block_shape = [dimensions[i].get_length() for i in range(1, len(dimensions))]
    kind = port.get_element_type()
    block_bytes = math.prod(block_shape) * kind.size
    memory = np.frombuffer(mmap.mmap(-1, num_blocks * block_bytes, flags=_PRIVATE), np.uint8)
    tensor = ov.Tensor(memory, ov.Shape([num_blocks, *block_shape]), kind)
    return tensor, memory.reshape(num_blocks, block_bytes)
