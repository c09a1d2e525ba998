"""What servers' metrics pages say, as they write them."""

from __future__ import annotations

import pytest

from headrace.server.gateway.foreign.metrics import ProgressWatch, ServerLoad, read_load

VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="/a b {x}"} 3.0
vllm:num_requests_running{engine="1",model_name="/a b {x}"} 2.0
vllm:num_requests_waiting{engine="0"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 100.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.75
vllm:generation_tokens_total{engine="0"} 1e+03
vllm:prompt_tokens_total{engine="0"} 10.0
vllm:prompt_tokens_created{engine="0"} 1.7e+09
"""
SGLANG = b"""sglang:num_running_reqs{model_name="m",tp_rank="0"} 5.0
sglang:num_queue_reqs{model_name="m"} 1.0
sglang:token_usage{model_name="m"} 0.28
sglang:generation_tokens_total{model_name="m"} 7.557572e+06
"""
LLAMA = b"""# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 1
llamacpp:requests_deferred 2
llamacpp:n_decode_total 12
llamacpp:tokens_predicted_total 7
"""
TGI = b"""tgi_batch_current_size 4
tgi_queue_size 7
tgi_batch_inference_count{method="decode"} 9
tgi_request_generated_tokens_bucket{le="1"} 5
tgi_request_generated_tokens_sum 100
"""
OURS = b"""headrace_generations_running 2
headrace_engine_steps_total{replica="r0"} 5
headrace_output_tokens_total 6
"""


@pytest.mark.parametrize(
    ("page", "load"),
    [
        (VLLM, ServerLoad(5, 4, 0.5, 1010.0)),
        (SGLANG, ServerLoad(5, 1, 0.28, 7557572.0)),
        (LLAMA, ServerLoad(1, 2, 0.0, 19.0)),
        (TGI, ServerLoad(4, 7, 0.0, 109.0)),
        (OURS, ServerLoad(2, 0, 0.0, 11.0)),
    ],
)
def test_each_servers_names_are_understood(page: bytes, load: ServerLoad) -> None:
    assert read_load(page) == load
    assert read_load(page.replace(b"\n", b" 1700000000000\n")) == load  # with time stamps


@pytest.mark.parametrize("page", [b"", b"<html>", b"process_cpu_seconds_total 3\n", b"\xff\x00"])
def test_a_page_without_a_known_name_says_nothing(page: bytes) -> None:
    assert read_load(page) is None


@pytest.mark.parametrize("value", [b"NaN", b"+Inf", b"-1", b"x", b"1e999"])
def test_values_that_are_none_are_left_out(value: bytes) -> None:
    page = b"tgi_batch_current_size 2\ntgi_batch_current_size " + value + b"\n"
    assert read_load(page) == ServerLoad(2, 0, 0.0, 0.0)


def test_progress_is_watched_only_while_there_is_work() -> None:
    watch = ProgressWatch()
    looks = [(1, 5.0, 0.0), (1, 5.0, 10.0), (0, 5.0, 20.0), (1, 5.0, 25.0), (1, 6.0, 30.0)]
    stuck = [watch.stuck_for(ServerLoad(n, 0, 0.0, p), now) for n, p, now in looks]
    assert stuck == [0.0, 10.0, 0.0, 5.0, 0.0]
