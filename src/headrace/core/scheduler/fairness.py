"""Who has received how much: resource time of tenants, as it is spent.

A tenant is charged for the chunks of its prompts (what the prefix cache holds is free), for its
decodes and for the share of the KV cache that it holds, in seconds of the device by the step-time
model, divided by its weight; in each class by itself, since classes are no rivals. Whoever was idle
starts again level with whoever is being served (start-time fair queueing: Goyal, Vin and Cheng,
SIGCOMM 1996; the virtual token counter of Sheng et al., OSDI 2024, charges tokens instead).

**Bound.** Let tenants i and j have requests waiting in one class all the time, S be what they have
received by weight, and S_j > S_i now. Let u be the last time when a request of j was started: j was
chosen, so S_j(u) <= S_i(u) then. Since u, j has received only what its requests that ran just after
u took; R_j(u) is all that they could take until their ends. Hence

    S_j - S_i <= S_j(u) + R_j(u) / w_j - S_i(u) <= R_j(u) / w_j

which is at most what ``max_num_seqs`` requests of the greatest length take: it does not grow with
time. Charges come when a step is planned, so "now" may be a step ahead. A request of i that does
not fit is passed by others ``max_passes`` times, and one that waits for content until it has come:
the bound grows by what those take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.core.scheduler.order import NUM_RANKS, Patience

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.core.costs.step_model import StepModel
    from headrace.core.scheduler.sequence import Sequence
    from headrace.core.scheduler.step import Step
    from headrace.types import Seconds, Tokens

KV_PRICE = 0.5
"""Holding the whole KV cache costs so much of what the device costs in the same time."""

EVERYBODY = "*"
MAX_IDLE = 1024  # accounts, before those of idle tenants are dropped


@dataclass(slots=True, eq=False)
class Account:
    """One tenant in one class. ``service`` is resource time by weight; only differences mean
    anything."""

    tenant: str
    rank: int
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
        self._accounts: dict[tuple[str, int], Account] = {}
        self.patience = Patience()
        self._levels = [0.0] * NUM_RANKS  # the most that a tenant had received when it was served

    def enter(self, tenant: str, weight: float, rank: int) -> Account:
        """Return the account of a tenant that has one more request in a class."""
        name = tenant if self._fair else EVERYBODY
        account = self._accounts.get((name, rank))
        if account is None:
            account = self._accounts[name, rank] = Account(name, rank)
        if not account.num_live:
            account.service = max(account.service, self._levels[rank])
        account.weight = weight if self._fair else 1.0
        account.num_live += 1
        return account

    def leave(self, account: Account) -> None:
        """A request has ended. What an idle tenant received beyond others is kept a while."""
        account.num_live -= 1
        if not account.num_live and account.service <= self._levels[account.rank]:
            del self._accounts[account.tenant, account.rank]
        elif not account.num_live and len(self._accounts) > MAX_IDLE:
            self._forget()

    def serve(self, account: Account) -> None:
        """A request of this tenant was chosen: whoever comes now starts from there."""
        self._levels[account.rank] = max(self._levels[account.rank], account.service)

    def charge_step(
        self,
        step: Step,
        model: StepModel,
        running: Iterable[Sequence],
        waiting: Iterable[int],
    ) -> None:
        """Charge a step's rows, and the KV cache held while it takes what ``model`` predicts.

        The tokens of chunks are charged where they are planned. ``waiting`` counts by class.
        """
        if len(self._accounts) < 2:  # nobody to compare with
            return
        costs, seconds = model.coefficients, model.seconds(step.load())
        per_token = KV_PRICE * seconds / self._capacity
        wants = [count > 0 for count in waiting]
        spent = step.spent
        for sequence in running:
            cost = 0.0
            if sequence.last_step == step.id:
                cost = costs.decode + costs.decode_context * sequence.num_computed
                spent[sequence.rank] += cost
            wants[sequence.rank] = True
            sequence.account.charge(cost + per_token * sequence.num_computed)
        whole = sum(spent)
        got = [seconds * each / whole if whole else seconds for each in spent]
        self.patience.note(wants=wants, got=got, seconds=seconds)

    def _forget(self) -> None:
        """Drop the idle: each would be level with the others, or was ahead and is forgiven."""
        idle = [key for key, account in self._accounts.items() if not account.num_live]
        for key in idle:
            del self._accounts[key]
