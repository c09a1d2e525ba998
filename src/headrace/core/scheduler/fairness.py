"""Who has received how much: resource time of tenants, as it is spent.

A tenant is charged for the chunks of its prompts (what the prefix cache holds is free), for its
decodes and for the share of the KV cache that it holds, in seconds of the device by the step-time
model, divided by its weight. Whoever was idle starts again level with whoever is being served
(start-time fair queueing: Goyal, Vin and Cheng, SIGCOMM 1996; the virtual token counter of Sheng
et al., OSDI 2024, charges tokens instead). So two tenants that always have something waiting are
never further apart than what one step and the requests already running can take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.core.scheduler.order import Patience

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.core.costs.step_model import StepCoefficients
    from headrace.core.scheduler.sequence import Sequence
    from headrace.types import Seconds, Tokens

KV_PRICE = 0.5
"""Holding the whole KV cache costs so much of what the device costs in the same time."""

EVERYBODY = "*"
MAX_IDLE = 1024  # accounts, before those of idle tenants are dropped


@dataclass(slots=True, eq=False)
class Account:
    """One tenant. ``service`` is resource time by weight; only differences mean anything."""

    tenant: str
    weight: float = 1.0
    service: Seconds = 0.0
    num_live: int = 0  # requests that wait or run

    def charge(self, seconds: Seconds) -> None:
        """Take note of resource time that was spent for this tenant."""
        self.service += seconds / self.weight


class Ledger:
    """The accounts of all tenants that have requests here, and what classes are owed.

    Not ``fair``: one account for all.
    """

    def __init__(self, *, capacity: Tokens, fair: bool = True) -> None:
        self._capacity = capacity  # of the KV cache
        self._fair = fair
        self._accounts: dict[str, Account] = {}
        self.patience = Patience()
        self._level: Seconds = 0.0  # the most that a tenant had received when it was served

    def enter(self, tenant: str, weight: float) -> Account:
        """Return the account of a tenant that has one more request."""
        name = tenant if self._fair else EVERYBODY
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = Account(name)
        if not account.num_live:
            account.service = max(account.service, self._level)
        account.weight = weight if self._fair else 1.0
        account.num_live += 1
        return account

    def leave(self, account: Account) -> None:
        """A request has ended. What an idle tenant received beyond others is kept a while."""
        account.num_live -= 1
        if not account.num_live and account.service <= self._level:
            del self._accounts[account.tenant]
        elif len(self._accounts) > MAX_IDLE:
            self._forget()

    def serve(self, account: Account) -> None:
        """A request of this tenant was chosen: whoever comes now starts from there."""
        self.patience = Patience()
        self._level = max(self._level, account.service)

    def charge_step(
        self, costs: StepCoefficients, seconds: Seconds, running: Iterable[Sequence]
    ) -> None:
        """Charge a step's decodes, and the KV cache held while it takes ``seconds``.

        Chunks are charged where they are planned.
        """
        if len(self._accounts) < 2:  # nobody to compare with
            return
        per_token = costs.decode_context + KV_PRICE * seconds / self._capacity
        for sequence in running:
            held = sequence.num_computed * per_token
            sequence.account.charge(held + costs.decode)

    def _forget(self) -> None:
        """Drop the idle: each would be level with the others, or was ahead and is forgiven."""
        idle = [name for name, account in self._accounts.items() if not account.num_live]
        for name in idle:
            del self._accounts[name]
