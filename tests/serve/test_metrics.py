from puna.serve.metrics import VLLM_PREFIX, Metrics


def test_counts_are_labelled_with_the_model_and_the_prefix_is_a_choice() -> None:
    metrics = Metrics("m", VLLM_PREFIX)
    metrics.generation_tokens.inc(3)
    metrics.finish("length")
    metrics.watch("num_requests_running", "Running.", lambda: 2)
    text = metrics.text().decode()
    assert 'vllm:generation_tokens_total{model_name="m"} 3.0' in text
    assert 'vllm:request_success_total{finished_reason="length",model_name="m"} 1.0' in text
    assert 'vllm:num_requests_running{model_name="m"} 2.0' in text


def test_two_servers_in_one_process_count_apart() -> None:
    one, other = Metrics("m"), Metrics("m")
    one.disconnects.inc()
    assert 'puna_client_disconnects_total{model_name="m"} 1.0' in one.text().decode()
    assert 'puna_client_disconnects_total{model_name="m"} 0.0' in other.text().decode()
