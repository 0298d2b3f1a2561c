"""What TRL makes of a batch: loss and gradients of its own trainers, for `test_trl.py`. Runs where TRL is installed.

A question names a checkpoint, the trainer, and items as token ids. The answer is the loss; gradients are written as a
checkpoint of the model's own layout, in which each parameter is its gradient.
"""
# ruff: noqa: E402

import json
import sys
import tempfile
from typing import Any

sys.modules["torchvision"] = None  # type: ignore[assignment]  # no pictures here; built for another torch it breaks all

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, Llama4ForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

Llama4ForCausalLM.base_model_prefix = "model"  # its own names a part that is not there, and TRL's trainers stop

SAME: dict[str, Any] = {
    "use_cpu": True,
    "report_to": [],
    "bf16": False,
    "gradient_checkpointing": False,
    "max_length": None,
    "dataloader_pin_memory": False,
    "router_aux_loss_coef": 0.0,  # TRL's balance loss looks for a number of experts where Llama 4 has none
}


def main() -> None:
    question = json.loads(sys.stdin.read())
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(
        question["model"], dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    words = WordLevel({word: i for i, word in enumerate("abcdpeu")}, unk_token="u")  # trainers want one; items are ids
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="p", eos_token="e", unk_token="u")
    with tempfile.TemporaryDirectory() as folder:
        ask = supervised if question["kind"] == "supervised" else preference
        loss = ask(question, model, tokenizer, folder)
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    model.save_pretrained(question["out"])
    print(json.dumps({"loss": loss.item()}))


def supervised(question: dict[str, Any], model: Any, tokenizer: Any, folder: str) -> torch.Tensor:
    """Items are {"input_ids", "labels"}. Packed: all in one row, as TRL's padding-free batches are."""
    options = SFTConfig(output_dir=folder, padding_free=question["packed"], **SAME)
    items = question["items"]
    trainer = SFTTrainer(model, options, train_dataset=Dataset.from_list(items), processing_class=tokenizer)
    n_learnt = torch.tensor(sum(label != -100 for item in items for label in item["labels"][1:]))
    loss: torch.Tensor = trainer.compute_loss(trainer.model, trainer.data_collator(items), num_items_in_batch=n_learnt)
    return loss


def preference(question: dict[str, Any], model: Any, tokenizer: Any, folder: str) -> torch.Tensor:
    """Items are {"prompt_ids", "chosen_ids", "rejected_ids"}; the reference is the model in the folder "reference"."""
    options = DPOConfig(output_dir=folder, beta=question["beta"], **question["options"], **SAME)
    base = AutoModelForCausalLM.from_pretrained(
        question["reference"], dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    words = [{"prompt": "a", "chosen": "b", "rejected": "c"}]  # never read: the batch is made of ids
    trainer = DPOTrainer(model, base, args=options, train_dataset=Dataset.from_list(words), processing_class=tokenizer)
    loss: torch.Tensor = trainer.compute_loss(trainer.model, trainer.data_collator(question["items"]))
    return loss


if __name__ == "__main__":
    main()
