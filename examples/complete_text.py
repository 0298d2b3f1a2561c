"""Continues a story, piece by piece as it is made. Use: python examples/complete_text.py [TEXT]"""

import sys

import puna
from puna.guard.guarded import protect

text = sys.argv[1] if len(sys.argv) > 1 else "Once upon a time there was a little goat who"
llama = protect(puna.load("cria"))

print(text, end="", flush=True)
for piece in llama.stream_complete(text, max_new_tokens=60, temperature=0.8, seed=4):
    print(piece, end="", flush=True)
print()
