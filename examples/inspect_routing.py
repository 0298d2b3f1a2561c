"""Shows which expert each token of a chat visits, layer by layer. Use: python examples/inspect_routing.py [TEXT]"""

import sys

import torch

import puna
from puna.model.mask import Packed

text = sys.argv[1] if len(sys.argv) > 1 else "How do you say “apple” in Spanish?"
llama = puna.load("cria")
prompt = llama.prompt([{"role": "user", "content": text}])

ids = torch.tensor(prompt.ids)
with torch.inference_mode():
    hidden = llama.model.hidden(ids, torch.arange(len(ids)), Packed.single(llama.config.text, len(ids)))

moe_layers = sorted(llama.config.text.moe_layers)
print(f"{'token':>20}   expert in layer {' '.join(f'{layer:>2}' for layer in moe_layers)}")
for position, token in enumerate(prompt.ids):
    visited = " ".join(f"{int(route.experts[position, 0]):>2}" for route in hidden.routes)
    print(f"{llama.tokenizer.decode([token])!r:>20}                   {visited}")
