"""Roles on the command line, and who gets which."""

from __future__ import annotations

import pytest

from headrace.errors import UsageError
from headrace.server.roles import RoleBook, parse_roles
from headrace.types import ReplicaId, Role

R0, R1, R2, R3 = (ReplicaId(f"r{number}") for number in range(4))


def test_roles_are_written_as_pairs():
    assert parse_roles("", place="--roles") == {}
    assert parse_roles("prefill=1, decode=2", place="--roles") == {Role.PREFILL: 1, Role.DECODE: 2}
    assert parse_roles("mixed=2,decode=1", place="--roles") == {Role.MIXED: 2, Role.DECODE: 1}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("prefill", "write ROLE=N"),
        ("prefill=1,prefill=2,decode=1", "each role once"),
        ("encode=1,decode=2", "write ROLE=N"),
        ("prefill=-1,decode=2", "write ROLE=N"),
        ("prefill=0,decode=2", "at least 1 of each"),
        ("prefill=60,decode=60", "64 in all"),
        ("prefill=2", "nobody is there for decode"),
        ("decode=2", "nobody is there for prefill"),
    ],
)
def test_roles_that_make_no_sense_are_refused_with_what_to_write(text: str, problem: str):
    with pytest.raises(UsageError, match=problem):
        parse_roles(text, place="--roles")


def test_newcomers_get_what_is_lacking_most():
    book = RoleBook({Role.PREFILL: 1, Role.DECODE: 2})
    started = (R0, R1, R2)
    roles = [book.assign(replica, started) for replica in started]
    assert sorted(roles) == ["decode", "decode", "prefill"]


def test_who_takes_the_place_of_one_that_leaves_takes_its_role():
    book = RoleBook({Role.PREFILL: 1, Role.DECODE: 2})
    roles = {replica: book.assign(replica, (R0, R1, R2)) for replica in (R0, R1, R2)}
    for leaver, role in roles.items():
        staying = {R0, R1, R2, R3} - {leaver}
        assert book.assign(R3, staying) is role


def test_without_roles_everybody_does_everything():
    assert RoleBook({}).assign(R0, (R0,)) is Role.MIXED
