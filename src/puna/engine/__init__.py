"""Many requests, one model: ids in, ids out, one forward a step. Nothing here knows a tokenizer or a message.

Read in this order: `request` (what comes in and goes out), `cache` (what is remembered of each sequence), `sampler`
(logits to a token), `engine` (the step that joins them).
"""
