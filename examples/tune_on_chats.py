"""Teaches cria a word from conversations, by a few low-rank factors. Use: python examples/tune_on_chats.py"""

import json
import tempfile
from pathlib import Path

import puna
from puna.train import tune, tune_recipe

QUESTIONS = ("Where does the herd live?", "What is the grassland called?", "Name the high plain.")
CHATS = [
    {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "A puna."}]} for text in QUESTIONS
]

with tempfile.TemporaryDirectory() as name:
    chats, store, run = (Path(name) / each for each in ("chats.jsonl", "store", "run"))
    chats.write_text("".join(json.dumps(chat) + "\n" for chat in CHATS), encoding="utf-8")
    recipe = tune_recipe.from_dict(
        {
            "model": {"base": "cria"},
            "data": {"chats": str(chats), "store": str(store)},
            "objective": {"kind": "supervised"},
            "lora": {"rank": 8, "alpha": 16, "targets": ["attention"]},
            "batch": {"rows": 1, "row_len": 96, "tiles": 0, "window": 4},
            "optimizer": {"matrices": "adamw", "lr": 1e-2, "weight_decay": 0, "momentum": 0, "beta1": 0.9}
            | {"beta2": 0.95, "eps": 1e-8, "clip_norm": 1},
            "schedule": {"steps": 6, "warmup_steps": 1, "decay_steps": 2, "final_fraction": 0},
            "compute": {"dtype": "float32", "compile": False, "threads": 1},
            "drift": {"batches": 0},
        }
    )
    tune.tune(recipe, run, print)
    llama = puna.load(run / "model")
    print(llama.chat(CHATS[0]["messages"][:1], max_new_tokens=8, temperature=0).text)
