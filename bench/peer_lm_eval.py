"""lm-evaluation-harness on a checkpoint through transformers: the log-likelihoods of continuations, timed.

    PYTHON_OF_LM_EVAL bench/peer_lm_eval.py CHECKPOINT REQUESTS [--batch 1] [--dtype float32]

REQUESTS: JSON lines {"id", "text", "continuations"}. Prints one JSON document: the seconds from requests to the
likelihoods, without loading, and the likelihoods by id. Runs without puna, in the environment of the harness;
bench/eval.py starts it.
"""

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("requests", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    chosen = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        document = measure(chosen.checkpoint, chosen.requests, chosen.batch, chosen.dtype)
    print(json.dumps(document))


def measure(checkpoint: str, requests: Path, batch: int, dtype: str) -> dict[str, object]:
    """Returns what `main` prints. The harness computes prompts with continuations of one token once for all of them."""
    declare_operators()
    import lm_eval
    import torch
    import transformers
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    rows = [json.loads(line) for line in requests.read_text("utf-8").splitlines()]
    model = HFLM(pretrained=checkpoint, dtype=dtype, device="cpu", batch_size=batch, add_bos_token=True)
    pairs = [(row["text"], continuation) for row in rows for continuation in row["continuations"]]
    instances = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    model.loglikelihood(instances[:1])
    begin = time.perf_counter()
    values = iter(model.loglikelihood(instances))
    seconds = time.perf_counter() - begin
    return {
        "seconds": seconds,
        "logprobs": {row["id"]: [float(next(values)[0]) for _ in row["continuations"]] for row in rows},
        "versions": {"lm-eval": lm_eval.__version__, "transformers": transformers.__version__},
        "n_threads": torch.get_num_threads(),
    }


def declare_operators() -> None:
    """Lets torchvision, which transformers asks for, be imported beside a torch for processors."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    with contextlib.suppress(ImportError):
        import tests.reference.torchvision_on_cpu  # noqa: F401


if __name__ == "__main__":
    main()
