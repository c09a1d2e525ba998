"""Philox4x32-10: random numbers as a function of a key and a counter, without state.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011);
the constants are those of its section 4.3. Because the number at a position depends on nothing
else, a request goes on elsewhere with the numbers it would have had here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U64 = np.uint64
Words = npt.NDArray[np.uint64]  # 32-bit words, held in 64 bits so that products fit

_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], U64)
_WEYL = np.array([[0x9E3779B9], [0xBB67AE85]], U64)  # golden ratio, sqrt(3) - 1
_LOW = U64(0xFFFFFFFF)
_32 = U64(32)
_ROUNDS = 10


def philox4x32(counter_4B: Words, key_2B: Words) -> Words:
    """Return four random words for each of B counters, shape [4, B]. Counters and keys: words."""
    even_2B, odd_2B = counter_4B[[0, 2]], counter_4B[[1, 3]]
    for _ in range(_ROUNDS):
        product_2B = even_2B * _MULTIPLIERS
        even_2B = (product_2B[::-1] >> _32) ^ odd_2B ^ key_2B
        odd_2B = product_2B[::-1] & _LOW
        key_2B = (key_2B + _WEYL) & _LOW
    return np.stack([even_2B[0], odd_2B[0], even_2B[1], odd_2B[1]])


def uniforms(seeds: list[int], choices: list[int], positions: list[int]) -> npt.NDArray[np.float64]:
    """Return one number in [0, 1) for each (seed, choice, position), shape [B].

    The key is the seed (64 bits, low word first); the counter is (position low, position high,
    choice, 0). The number is made of the first 53 bits of the first two words.
    """
    seeds_B = np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], U64)
    positions_B = np.array(positions, U64)
    choices_B = np.array(choices, U64)
    counter_4B = np.stack(
        [positions_B & _LOW, positions_B >> _32, choices_B & _LOW, np.zeros_like(choices_B)]
    )
    words_4B = philox4x32(counter_4B, np.stack([seeds_B & _LOW, seeds_B >> _32]))
    bits_B = ((words_4B[0] << _32) | words_4B[1]) >> U64(11)
    numbers_B: npt.NDArray[np.float64] = bits_B.astype(np.float64) * 2.0**-53
    return numbers_B
