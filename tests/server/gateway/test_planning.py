"""Block names: apart for each tenant and each salt, the same for those who share."""

from __future__ import annotations

from headrace.server.gateway.api.requests import CompletionRequest
from headrace.server.gateway.planning import Asked, Chains, Draft, ModelFacts, build_requests
from headrace.types import PriorityClass, Request, RequestId

MODEL = ModelFacts(context_length=100, vocab_size=1000, end_ids=(0,), default_max_tokens=None)


def chains_of(secret: bytes = b"secret") -> Chains:
    return Chains(secret=secret, model_identity="m", block_size=4)


def named(tenant: str, salt: str | None = None, chains: Chains | None = None) -> Request:
    request = Request(id=RequestId("r"), prompt=tuple(range(10)), max_tokens=1, tenant=tenant)
    (result,) = (chains or chains_of()).name((request,), salt)
    return result


def test_two_tenants_have_no_block_in_common():
    chains = chains_of()
    red, blue = named("red", chains=chains), named("blue", chains=chains)
    assert len(red.chain) == len(blue.chain) == 2
    assert not {red.chain_root, *red.chain} & {blue.chain_root, *blue.chain}


def test_one_tenant_shares_at_every_gateway_with_the_same_secret():
    assert named("red") == named("red", chains=chains_of())
    assert named("red").chain != named("red", chains=chains_of(b"other")).chain


def test_a_clients_salt_adds_to_the_tenants_and_does_not_replace_it():
    roots = {named(tenant, salt).chain_root for tenant in ("a", "b") for salt in (None, "", "x")}
    assert len(roots) == 6


def test_tenant_and_class_of_the_draft_are_those_of_every_choice():
    body = CompletionRequest(prompt="x", n=2)
    asked = Asked(fields=body, max_tokens=5, logprobs=None, prompt_field="prompt")
    plain = Draft(id="i", seed=1, deadline=9.0)
    (group,) = build_requests(asked, [(1, 2)], plain, MODEL)
    assert {(each.tenant, each.priority) for each in group} == {("default", "standard")}
    draft = Draft(id="i", seed=1, deadline=9.0, tenant="red", priority=PriorityClass.BATCH)
    (group,) = build_requests(asked, [(1, 2)], draft, MODEL)
    assert [(each.tenant, each.priority) for each in group] == [("red", "batch")] * 2
