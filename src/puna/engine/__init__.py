"""Many requests, one model: ids in, ids out, one forward a step. Nothing here knows a tokenizer or a message.

Read in this order: `request` (what comes in and goes out), `sequence` (a text that grows), `blocks` and `cache` (what
is remembered of texts), `scheduler` (who runs next), `speculate` (guesses of what follows), `batch` and `runner` (one
forward), `grammar` and `sampler` (logits to a token), `engine` (the step that joins them).
"""
