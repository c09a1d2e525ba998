"""Philox4x32-10 against the known-answer vectors of the Random123 distribution."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.executor.philox import philox4x32, uniforms

KNOWN_ANSWERS = [  # counter and key, answer (kat_vectors, "philox4x32 10")
    (
        "00000000 00000000 00000000 00000000 00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text: str) -> np.ndarray:
    return np.array([[int(word, 16)] for word in text.split()], np.uint64)


@pytest.mark.parametrize(("given", "answer"), KNOWN_ANSWERS)
def test_known_answers(given: str, answer: str):
    inputs = words(given)
    assert (philox4x32(inputs[:4], inputs[4:]) == words(answer)).all()


def test_a_batch_gives_what_each_of_its_members_gives_alone():
    inputs = np.concatenate([words(given) for given, _ in KNOWN_ANSWERS], axis=1)
    answers = np.concatenate([words(answer) for _, answer in KNOWN_ANSWERS], axis=1)
    assert (philox4x32(inputs[:4], inputs[4:]) == answers).all()


def test_uniforms_use_seed_choice_and_position_and_nothing_else():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**40, 0, 0), (0, 0, 2**33)]
    numbers = uniforms(*(list(column) for column in zip(*keys, strict=True)))
    assert len(set(numbers.tolist())) == len(keys)
    assert numbers[3] == uniforms([0], [0], [1])[0]
    assert ((numbers >= 0) & (numbers < 1)).all()


def test_the_first_number_is_made_of_the_first_53_bits():
    assert uniforms([0], [0], [0])[0] == (0x6627E8D5E169C58D >> 11) / 2**53


def test_seeds_outside_64_bits_are_taken_modulo_two_to_the_64():
    assert uniforms([-1], [0], [7])[0] == uniforms([2**64 - 1], [0], [7])[0]


def test_uniforms_are_spread_evenly():
    numbers = uniforms([12345] * 20_000, [0] * 20_000, list(range(20_000)))
    counts, _ = np.histogram(numbers, 20, (0, 1))
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 43.8  # 19 degrees of freedom, p = 0.001
