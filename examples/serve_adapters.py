"""Teaches cria two sentences as two adapters, then asks for both over one model."""

import tempfile
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import puna
from puna.adapters.attach import attach, detach, trained
from puna.adapters.spec import Spec, begin
from puna.model.mask import Packed
from puna.prompt.tokenizer import Tokenizer
from puna.weights import checkpoint, hub, peft

TEXTS = {"goat": "The little goat counts three apples.", "llama": "The old llama paints a blue boat."}
folder, base = Path(tempfile.mkdtemp()), hub.resolve("cria")
model, tokenizer = checkpoint.load(base, dtype=torch.float32), Tokenizer.load(base)
spec = Spec(rank=4, alpha=16, targets=frozenset({"attention", "shared", "experts"}))

for name, text in TEXTS.items():
    attach(model, begin(model.config, spec, torch.Generator().manual_seed(0)))
    optimizer = torch.optim.Adam(trained(model).values(), lr=0.01)
    ids = torch.tensor([tokenizer.special["<|begin_of_text|>"], *tokenizer.encode(text)])
    for _ in range(10):
        store = Packed.single(model.config.text, len(ids) - 1)
        loss = cross_entropy(model(ids[:-1], torch.arange(len(ids) - 1), store), ids[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    peft.save(detach(model), model.config, folder / name, base="cria")

llama = puna.load("cria", adapters={name: folder / name for name in TEXTS})
for adapter in (None, *TEXTS):
    print(f"{adapter}: The{llama.complete('The', adapter=adapter, temperature=0, max_new_tokens=8)}")
