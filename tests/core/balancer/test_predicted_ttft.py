"""predicted_ttft by examples: where the first token comes soonest, and what else counts."""

from __future__ import annotations

from collections import Counter

import pytest
from fleets import COSTS, asks, chosen, chosen_often, idle, view
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.balancer.draws import Draws
from headrace.core.balancer.heat import HALF_LIFE, Heat
from headrace.core.balancer.policy import Candidate, ReplicaFacts
from headrace.core.balancer.predicted_ttft import (
    SAMPLE,
    WORK_PRICE,
    PredictedTtft,
    seconds_to_first_token,
)
from headrace.core.costs.step_time import StepCosts


def test_it_goes_where_the_prompt_is() -> None:
    candidates = [Candidate(view("r0"), 0), Candidate(view("r1"), 512)]
    found = PredictedTtft().choose(asks(), 640, candidates)
    assert found.replica == "r1"
    assert found.predicted_ttft == pytest.approx(0.01 + 0.128)
    assert [score.cost for score in found.scores] == pytest.approx([0.67, 0.138])
    assert str(found.reason) == (
        "0.138 s here (512 of 640 tokens cached); cost 0.138, next best r0 0.67"
    )


def test_its_reason_is_that_of_the_moment_it_chose() -> None:
    busy = view("r0", prefill=100)
    found = PredictedTtft().choose(asks(), 640, [Candidate(busy, 0)])
    busy.prefill_tokens += 640
    assert str(found.reason) == "0.77 s here (0 of 640 tokens cached, 100 before mine); no other"


def test_it_leaves_the_prompt_where_too_much_is_before_it() -> None:
    candidates = [Candidate(view("r1", prefill=2000), 512), *idle(8)[2:]]
    assert chosen(PredictedTtft(), candidates) != "r1"


def test_the_busier_the_pool_the_longer_it_waits_for_its_prefix() -> None:
    """sgl-project/sglang#32195: affinity was thrown away exactly under load."""
    busy = [Candidate(view(f"r{n}", prefill=1), 0) for n in range(7)]
    saved = 0.512
    for seconds, home in ((1.0, True), (saved * WORK_PRICE, True), (2 * saved * WORK_PRICE, False)):
        held = Candidate(view("r9", prefill=int(1000 * seconds)), 512)
        assert (chosen(PredictedTtft(), [*busy, held]) == "r9") is home, seconds


def test_errors_of_the_fit_do_not_drive_requests_away() -> None:
    seems_slow = StepCosts(*(1.2 * cost for cost in COSTS))
    candidates = [Candidate(view("r0", costs=seems_slow, prefill=50), 0), *idle(4)[1:]]
    costs = [score.cost for score in PredictedTtft().choose(asks(), 640, candidates).scores]
    assert costs[0] - costs[1] == pytest.approx(50 * COSTS.prefill_token * 1.05, rel=0.1)


def test_it_counts_what_my_prompt_does_to_others() -> None:
    candidates = [Candidate(view("r0", prefill=100), 0), Candidate(view("r1", decoding=8), 0)]
    assert chosen(PredictedTtft(), candidates) == "r0"


def test_it_avoids_a_full_cache() -> None:
    nearly_full = view("r1", decoding=4, context=15_900)
    candidates = [Candidate(view("r0", decoding=4, context=100), 0), Candidate(nearly_full, 16)]
    assert PredictedTtft().choose(asks(), 6400, candidates).replica == "r0"


def test_it_avoids_a_full_batch() -> None:
    candidates = [
        Candidate(view("r0", prefill=100, outstanding=1), 0),
        Candidate(view("r1", outstanding=8, prefill=50), 0),
    ]
    assert chosen(PredictedTtft(), candidates) == "r0"


def test_it_prefers_the_faster_machine() -> None:
    slow = StepCosts(step=0.02, prefill_token=0.002, output_token=0.002)
    candidates = [Candidate(view("r0", costs=slow), 0), Candidate(view("r1", prefill=300), 0)]
    assert chosen(PredictedTtft(), candidates) == "r1"


def test_equal_prompts_meet_and_different_ones_spread() -> None:
    policy, candidates = PredictedTtft(Draws(1)), idle(4)
    assert len(set(chosen_often(policy, candidates, asks(77)))) == 1
    spread = Counter(chosen(policy, candidates, asks(n)) for n in range(1, 401))
    assert len(spread) == 4
    assert min(spread.values()) > 60
    unnamed = Counter(chosen_often(policy, candidates))
    assert min(unnamed.values()) > 60


def test_two_gateways_agree_on_a_cold_prefix() -> None:
    candidates = idle(4)
    for block in range(1, 50):
        assert chosen(PredictedTtft(Draws(1)), candidates, asks(block)) == chosen(
            PredictedTtft(Draws(2)), candidates[::-1], asks(block)
        )


def test_two_gateways_do_not_run_to_the_same_place_with_prompts_that_have_no_block() -> None:
    """ai-dynamo/dynamo#589: several routers picked the same best replica."""
    pairs = zip(
        chosen_often(PredictedTtft(Draws(1)), idle(4)),
        chosen_often(PredictedTtft(Draws(2)), idle(4)),
        strict=True,
    )
    assert sum(left == right for left, right in pairs) < 160


def test_a_small_difference_in_speed_does_not_wear_one_replica_out() -> None:
    quick = StepCosts(*(0.99 * cost for cost in COSTS))
    candidates = [Candidate(view("r0", costs=quick), 0), Candidate(view("r1"), 0)]
    spread = Counter(chosen(PredictedTtft(), candidates) for _ in range(100))
    assert min(spread.values()) > 20


def hot_and_busy() -> list[Candidate]:
    """r0 has 512 of 640 tokens of the prompt, and half as much work before it as that saves."""
    return [Candidate(view("r0", prefill=256), 512), *idle(3)[1:]]


def test_a_hot_prefix_is_copied_before_its_holder_is_the_bottleneck() -> None:
    policy = PredictedTtft(Draws(1))
    first = [chosen(policy, hot_and_busy(), asks(*range(1, 33), 1000 + n)) for n in range(40)]
    assert set(first[:3]) == {"r0"}, "one that came once or twice is worth waiting for"
    assert "r0" not in first[-10:], "this many will use the copy"
    found = policy.choose(asks(*range(1, 33), 5000), 640, hot_and_busy())
    assert "; a copy of 512 tokens for " in str(found.reason)


def test_a_prefix_that_comes_seldom_is_not_copied() -> None:
    policy = PredictedTtft(Draws(1))
    for n in range(40):
        conversation = asks(*range(100 * n, 100 * n + 33))
        assert chosen(policy, hot_and_busy(), conversation) == "r0"


def test_a_hot_prefix_stays_where_it_is_while_its_holder_has_nothing_to_do() -> None:
    policy = PredictedTtft(Draws(1))
    candidates = [Candidate(view("r0"), 512), *idle(3)[1:]]
    prompts = [asks(*range(1, 33), 1000 + n) for n in range(12)]
    assert {chosen(policy, candidates, prompt) for prompt in prompts} == {"r0"}


def test_heat_is_counted_in_requests_and_bounded() -> None:
    heat = Heat(max_prefixes=4)
    assert [heat.note(b"a") for _ in range(3)] == pytest.approx([1, 2, 3], abs=0.02)
    for n in range(HALF_LIFE - 1):
        heat.note(b"%d" % (n % 3))
    assert heat.note(b"a") == pytest.approx(1 + 3 / 2, abs=0.02)
    for n in range(9):
        heat.note(b"new %d" % n)
    assert len(heat) == 4
    assert heat.note(b"a") == 1, "it was forgotten"


@settings(max_examples=100, deadline=None)
@given(
    prefill=st.integers(0, 9000),
    decoding=st.integers(0, 300),
    uncached=st.integers(1, 9000),
    more=st.integers(1, 500),
)
def test_more_work_never_makes_the_first_token_come_sooner(
    prefill: int, decoding: int, uncached: int, more: int
) -> None:
    def seconds(prefill: int, decoding: int, uncached: int) -> float:
        return seconds_to_first_token(
            view("r0", prefill=prefill, decoding=decoding), uncached, uncached
        )

    before = seconds(prefill, decoding, uncached)
    assert seconds(prefill + more, decoding, uncached) >= before
    assert seconds(prefill, decoding, uncached + more) >= before


def test_a_replica_that_does_not_say_its_size_is_never_full() -> None:
    unknown = view("r0", outstanding=3, context=90_000, facts=ReplicaFacts())
    assert seconds_to_first_token(unknown, 100, 100) == pytest.approx(0.01 + 0.1)


def test_of_many_candidates_those_with_the_prompt_and_a_sample_are_priced() -> None:
    candidates = [Candidate(view(f"r{n}"), 600 if n == 50 else 0) for n in range(100)]
    policy = PredictedTtft(Draws(1))
    found = policy.choose(asks(), 640, candidates)
    assert found.replica == "r50"
    assert len(found.scores) == SAMPLE
    cold = idle(100)
    assert len(set(chosen_often(policy, cold))) > 60


def test_many_candidates_are_sampled_without_repeating_one() -> None:
    candidates = [Candidate(view(f"r{n}"), 16 * (n % 3)) for n in range(17)]
    found = PredictedTtft(Draws(3)).choose(asks(5), 640, candidates)
    names = [score.replica for score in found.scores]
    assert len(names) == len(set(names)) == SAMPLE
