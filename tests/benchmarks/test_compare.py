"""The comparison's own logic: variants, peers' rates, and what the bars make of figures."""

from __future__ import annotations

from argparse import Namespace

import bars
import compare
import pytest
import servers
from bars import Measured
from compare import Turn
from workloads import Prompts


def verdicts(measured: bars.Measurements, *variants: str) -> dict[str, bars.Verdict]:
    return {verdict.bar: verdict for verdict in bars.judge_engine(measured, variants)}


def test_a_variant_has_settings_and_flags():
    variant = servers.parse_variant("ours-spec=engine.speculation=lookup --threads 1")
    assert variant.name == "ours-spec"
    assert variant.environment == {"HEADRACE_ENGINE_SPECULATION": "lookup"}
    assert list(variant.flags) == ["--threads", "1"]


def test_ours_itself_may_have_other_settings():
    args = Namespace(
        variants=[servers.parse_variant("ours=engine.speculation=off")],
        ours_command="serve --port {port}",
        ours_ready_path="/ready",
    )
    spec = servers.build_spec("ours", args, 8123)
    assert (spec.name, list(spec.command)) == ("ours", ["serve", "--port", "8123"])
    assert spec.environment == {"HEADRACE_ENGINE_SPECULATION": "off"}


def test_a_path_with_an_equals_sign_is_a_flag_and_no_setting():
    variant = servers.parse_variant("ours-x=--config=/a/b.toml")
    assert list(variant.flags) == ["--config=/a/b.toml"]
    assert not variant.environment


@pytest.mark.parametrize("text", ["ours-spec", "vllm=--x", "=a.b=c"])
def test_what_is_no_variant_is_refused(text: str):
    with pytest.raises(ValueError, match="NAME=SETTINGS"):
        servers.parse_variant(text)


def test_each_server_may_have_workloads_of_its_own():
    assert compare.read_servers("vllm,llamacpp-default:CD,ours", "AB") == {
        "vllm": "AB",
        "llamacpp-default": "CD",
        "ours": "AB",
    }


def test_ours_gets_the_rates_of_the_peers_of_the_same_round_only():
    def turn(server: str, number: int, rate: float) -> Turn:
        return Turn(server=server, round=number, ready_s=1.0, rates={bars.SATURATING: rate})

    turns = [turn("vllm", 1, 2.0), turn("vllm", 2, 3.0), turn("ours-spec", 2, 9.0)]
    assert compare.rates_of_peers(turns, 2) == {"E90%:vllm": 3.0}


def test_the_best_peer_counts_and_ratios_are_told():
    measured = {
        "ours": {"B": Measured(rate=120.0)},
        "vllm": {"B": Measured(rate=100.0)},
        "openvino": {"B": Measured(rate=90.0)},
    }
    verdict = verdicts(measured)["B >= 1.1 x best peer"]
    assert verdict.reached
    assert verdict.stretch is False
    assert verdict.measured == "120.0 / 100.0 (vllm) = 1.20"


def test_a_bar_without_its_peer_is_not_measured():
    verdict = verdicts({"ours": {"A": Measured(rate=120.0)}})["A >= 1.1 x llamacpp"]
    assert verdict.reached is None


def test_latencies_at_our_own_rate_have_fixed_limits():
    own = Measured(rate=1.0, ttft_p95=700.0, itl_p95=100.0, itl_p99=151.0)
    found = verdicts({"ours": {"E90%": own}})
    ttft, itl = found["E90% TTFT p95, ms <= 1000"], found["E90% ITL p99, ms <= 150"]
    assert (ttft.reached, ttft.stretch) == (True, False)
    assert itl.reached is False


def test_latencies_at_a_peers_rate_are_held_against_the_peers():
    measured = {
        "vllm": {"E90%": Measured(rate=1.0, ttft_p95=800.0, itl_p95=100.0)},
        "ours": {"E90%:vllm": Measured(rate=1.0, ttft_p95=400.0, itl_p95=100.0)},
    }
    found = verdicts(measured)
    ttft, itl = found["E90%:vllm TTFT p95 < 1 x"], found["E90%:vllm ITL p95 < 1 x"]
    assert (ttft.reached, ttft.stretch) == (True, True)
    assert (itl.reached, itl.stretch) == (False, False)  # equal is not below
    assert not any("openvino" in name and "E90%" in name for name in found)


def test_a_variant_is_held_against_ours_on_repetitive_text():
    measured = {"ours": {"R": Measured(rate=50.0)}, "ours-spec": {"R": Measured(rate=95.0)}}
    verdict = verdicts(measured, "ours-spec")["R ours-spec >= 1.8 x ours"]
    assert (verdict.reached, verdict.stretch) == (True, False)


def test_repetitive_prompts_open_their_own_text_again():
    prompts = Prompts(lambda text: len(text.split()), seed=1, round=1).repetitive()
    assert len({*prompts}) == len(prompts) > 1
    for prompt in prompts:
        text, _, opening = prompt.split("\n\n")
        assert text.startswith(opening)
        assert len(text) > 5 * len(opening)
