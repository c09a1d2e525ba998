"""Roles of a server's replicas: how many of each are wanted, and which one has which."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from headrace.errors import UsageError
from headrace.server.replica_range import MAX_REPLICAS
from headrace.types import Role

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from headrace.types import ReplicaId

_PART = re.compile(r"([a-z]+)=([0-9]{1,4})")


def parse_roles(text: str, *, place: str) -> dict[Role, int]:
    """Return ``prefill=1,decode=2`` as it is meant; nothing for "". Raises UsageError."""
    wanted: dict[Role, int] = {}
    for part in filter(None, text.split(",")):
        match = _PART.fullmatch(part.strip())
        if match is None or match[1] not in list(Role) or match[1] in wanted:
            names = ", ".join(Role)
            raise UsageError(
                f"{place} is {text!r}: write ROLE=N, each role once ({names}), as in "
                f"prefill=1,decode=2"
            )
        wanted[Role(match[1])] = int(match[2])
    if wanted and (not min(wanted.values()) or sum(wanted.values()) > MAX_REPLICAS):
        raise UsageError(f"{place} is {text!r}: at least 1 of each, {MAX_REPLICAS} in all at most")
    missing = {Role.PREFILL, Role.DECODE} - wanted.keys()
    if len(missing) == 1 and Role.MIXED not in wanted:
        raise UsageError(f"{place} is {text!r}: nobody is there for {missing.pop()}")
    return wanted


class RoleBook:
    """Gives each newcomer the role that is lacking most."""

    def __init__(self, wanted: Mapping[Role, int]) -> None:
        self._wanted = wanted
        self._roles: dict[ReplicaId, Role] = {}

    def assign(self, replica: ReplicaId, staying: Collection[ReplicaId]) -> Role:
        """Return a new replica's role, once and for all; ``staying`` are those that do not leave.

        MIXED where no roles are wanted.
        """
        if not self._wanted:
            return Role.MIXED
        present = [role for name, role in self._roles.items() if name in staying]
        role = max(self._wanted, key=lambda each: self._wanted[each] - present.count(each))
        self._roles[replica] = role
        return role
