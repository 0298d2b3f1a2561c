"""vLLM on a checkpoint, timed as `puna bench` times puna: one JSON document with the same names.

    LD_PRELOAD=TCMALLOC:LIBIOMP VLLM_CPU_OMP_THREADS_BIND=0-1 PYTHON_OF_VLLM bench/peer_vllm.py CHECKPOINT CASE ...

Cases are named as `puna bench --only` names them. Prompts are random ids, decoding is greedy, nothing ends early; a
decode rate counts the tokens that come once every prompt has got its first one. Runs without puna, in vLLM's own
environment; bench/peers.py starts it.
"""

import argparse
import json
import random
import re
import statistics
import time
from typing import Any

DECODE_STEPS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--runs", type=int, default=7, help="of each case, after one more")
    parser.add_argument("--dtype", default="bfloat16")
    chosen = parser.parse_args()
    import vllm

    begin = time.perf_counter()
    model = vllm.LLM(
        chosen.checkpoint,
        dtype=chosen.dtype,
        enforce_eager=True,
        max_model_len=4096,
        max_num_seqs=16,
        max_num_batched_tokens=4096,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )
    read(model, [[1]])
    samples = {"load_s": [time.perf_counter() - begin]}
    for case in chosen.cases:
        samples[f"{case}_tok_s"] = rates(model, case, chosen.runs)
    medians = {name: statistics.median(values) for name, values in samples.items()}
    print(json.dumps({"peer": "vllm-cpu", "versions": {"vllm": vllm.__version__}, **medians, "samples": samples}))


def rates(model: Any, case: str, runs: int) -> list[float]:
    """Returns tokens a second in each of `runs` runs of a case, after one that does not count."""
    found = re.fullmatch(r"prefill_(\d+)|decode_b(\d+)_ctx(\d+)", case)
    if found is None:
        raise SystemExit(f"no such case: {case}")
    numbers = random.Random(case)
    measured = []
    for _ in range(runs + 1):
        batch, context = (1, int(found[1])) if found[1] else (int(found[2]), int(found[3]))
        prompts = [[numbers.randrange(30000) for _ in range(context)] for _ in range(batch)]
        measured.append(context / read(model, prompts) if found[1] else decode(model, prompts))
    return measured[1:]


def read(model: Any, prompts: list[list[int]]) -> float:
    """Returns the seconds until every prompt has its first token."""
    begin = time.perf_counter()
    for _ in steps(model, prompts, 1):
        pass
    return time.perf_counter() - begin


def decode(model: Any, prompts: list[list[int]]) -> float:
    """Returns the tokens a second that all prompts together get once every one has been read."""
    seen: dict[str, int] = {}
    begin, already = 0.0, 0
    for name, n_tokens in steps(model, prompts, DECODE_STEPS + 1):
        seen[name] = n_tokens
        if not begin and len(seen) == len(prompts):
            begin, already = time.perf_counter(), sum(seen.values())
    return (sum(seen.values()) - already) / (time.perf_counter() - begin)


def steps(model: Any, prompts: list[list[int]], n_new: int) -> Any:
    """Runs prompts to `n_new` tokens each. Yields who has how many tokens after each step."""
    from vllm import SamplingParams

    engine = model.llm_engine
    how = SamplingParams(temperature=0, max_tokens=n_new, min_tokens=n_new, ignore_eos=True, detokenize=False)
    for prompt in prompts:
        engine.add_request(str(next(_names)), {"prompt_token_ids": prompt}, how)
    while engine.has_unfinished_requests():
        for output in engine.step():
            yield output.request_id, len(output.outputs[0].token_ids)


_names = iter(range(10**9))

if __name__ == "__main__":
    main()
