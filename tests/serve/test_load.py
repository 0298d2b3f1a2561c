from prometheus_client import CollectorRegistry, generate_latest

from puna.meter import Meter
from puna.serve.load import Held, Load


def test_what_the_engine_holds_and_its_experts_take_is_told_when_somebody_asks() -> None:
    counts, clock = [[30, 10], [0, 0]], iter([0, 7])
    held = Held(3, 2, 0.25, 100, 40, 1, 9, 6)
    meter = Meter("gpu-0", "nvml-counter", lambda: next(clock), 2.0)
    load = Load("m", "vllm:", lambda: held, lambda: counts, [1, 3], [meter])
    registry = CollectorRegistry()
    registry.register(load)
    lines = set(generate_latest(registry).decode().splitlines())
    assert {
        'vllm:num_requests_running{model_name="m"} 3.0',
        'vllm:num_requests_waiting{model_name="m"} 2.0',
        'vllm:kv_cache_usage_perc{model_name="m"} 0.25',
        'vllm:prefix_cache_queries_total{model_name="m"} 100.0',
        'vllm:prefix_cache_hits_total{model_name="m"} 40.0',
        'vllm:num_preemptions_total{model_name="m"} 1.0',
        'vllm:expert_tokens_total{expert="0",layer="1",model_name="m"} 30.0',
        'vllm:expert_load_imbalance{layer="1",model_name="m"} 1.5',
        'vllm:energy_joules_total{device="gpu-0",model_name="m"} 14.0',
    } <= lines
    assert not any("imbalance" in line and 'layer="3"' in line for line in lines)
