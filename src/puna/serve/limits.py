"""How much one request may ask for. Not here: who looks."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Every excess is refused with the limit in the message."""

    max_n: int = 64  # samples of one prompt, which the engine decodes together
    max_choices: int = 128  # prompts times n
    max_messages: int = 2048
    max_tools: int = 128
    max_stops: int = 16
    max_stop_chars: int = 256
    max_top_logprobs: int = 20  # as in OpenAI's API
    max_biases: int = 1024  # as in OpenAI's API
    max_ids: int = 2**18  # that alone are allowed, or end an answer
    max_rule_chars: int = 100_000  # of what says how an answer must look: it is compiled in about a second
    max_images: int = 5  # what Llama 4 was tested with, by its model card
    max_image_bytes: int = 20 * 2**20
    max_image_pixels: int = 24_000_000
    max_echo_bytes: int = 2 * 2**30  # of float32 logits, which are all held at once
