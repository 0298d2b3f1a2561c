"""Seconds of a tuning step in TRL and PEFT: supervised, all weights or factors. Called by bench/tune.py where TRL is.

    peer_trl.py CKPT MODE STEPS ROWS ROW_LEN      MODE: full, attention (attention and shared experts), experts (too)

A step is forward, backward and AdamW on random ids, all of them learnt, in bfloat16 (masters in float32 for full, as
autocast has them; factors in float32). Prints one JSON line.
"""

import json
import sys
import tempfile
import time
from typing import Any

sys.modules["torchvision"] = None  # type: ignore[assignment]  # no pictures here; built for another torch it breaks all

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from tokenizers.models import WordLevel  # noqa: E402
from transformers import AutoModelForCausalLM, Llama4ForCausalLM, PreTrainedTokenizerFast  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

Llama4ForCausalLM.base_model_prefix = "model"  # its own names a part that is not there, and TRL's trainers stop

MAPS = ["q_proj", "k_proj", "v_proj", "o_proj", "shared_expert.gate_proj", "shared_expert.up_proj"]
MAPS += ["shared_expert.down_proj"]
STACKS = ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"]


def main() -> None:
    folder, mode, *counts = sys.argv[1:]
    n_steps, rows, row_len = map(int, counts)
    dtype = torch.float32 if mode == "full" else torch.bfloat16
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    words = WordLevel({word: i for i, word in enumerate("abcdpeu")}, unk_token="u")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="p", eos_token="e", unk_token="u")
    factors = None
    if mode != "full":
        stacks = STACKS if mode == "experts" else None
        factors = LoraConfig(r=16, lora_alpha=32, target_modules=MAPS, target_parameters=stacks, lora_dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    items = [
        {"input_ids": (ids := torch.randint(10, 500, (row_len,), generator=generator).tolist()), "labels": ids}
        for _ in range(rows)
    ]
    with tempfile.TemporaryDirectory() as out:
        options = SFTConfig(
            output_dir=out,
            use_cpu=True,
            bf16=True,
            gradient_checkpointing=False,
            max_length=None,
            report_to=[],
            router_aux_loss_coef=0.0,
        )
        data = Dataset.from_list(items)
        trainer = SFTTrainer(model, options, train_dataset=data, processing_class=tokenizer, peft_config=factors)
        trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        batch = trainer.data_collator(items)
        seconds = []
        for _ in range(n_steps + 1):
            began = time.perf_counter()
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(trainer.model, dict(batch))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - began)
    print(json.dumps({"seconds": seconds[1:], "trained": sum(each.numel() for each in trained)}))


if __name__ == "__main__":
    main()
