"""Scores texts: how surprised is the model, in bits per byte? Lower is better. Use: python examples/score_logits.py"""

import math

import torch

import puna

TEXTS = (
    "The dog ran after the cat.",
    "The dog ran after the the.",
    "Der Hund lief hinter der Katze her.",
)

llama = puna.load("cria")
for text in TEXTS:
    ids = [llama.tokenizer.bos_id, *llama.tokenizer.encode(text)]
    logprobs = llama.logits(ids)[:-1].log_softmax(-1)  # row t predicts token t + 1
    bits = -logprobs.gather(1, torch.tensor(ids[1:])[:, None]).sum().item() / math.log(2)
    print(f"{bits / len(text.encode()):6.2f} bits per byte   {text}")
