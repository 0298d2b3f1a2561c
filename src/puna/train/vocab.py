"""The vocabulary of cria: a byte-level BPE learnt from documents, written as tokenizer.json.

In: texts by language. Out: ranks (256 bytes, then merges in the order learnt), and a folder with `tokenizer.json` and
`tokenizer_config.json` in the Hugging Face layout. The ids are the ranks, then the special tokens. It does not encode
or decode: `puna.prompt.tokenizer` does. The package `tokenizers` is needed to learn, not to write.

Source: the split pattern is the published one of the Llama 4 tokenizer (meta-llama/llama-models,
models/llama4/tokenizer.py); the names of the special tokens are from the same file.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from random import Random

from puna.errors import ConfigError

PATTERN = (
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"""
    r"""|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"""
    r"""|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
SPECIAL_NAMES = (
    "begin_of_text",
    "end_of_text",
    "fim_prefix",
    "fim_middle",
    "fim_suffix",
    "header_start",
    "header_end",
    "eom",
    "eot",
    "step",
    "python_start",
    "python_end",
    "finetune_right_pad",
    "image_start",
    "image_end",
    "tile_x_separator",
    "tile_y_separator",
    "image",
    "patch",
    "reasoning_thinking_start",
    "reasoning_thinking_end",
)
N_SPECIAL = 64  # named ones first, then reserved ones
VOCAB_SIZE = 12288  # ranks and special tokens together
# Renders what puna.prompt.render renders for messages without tools: Llama 4's headers, one <|image|> for each picture.
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|header_start|>' + message['role'] + '<|header_end|>\\n\\n' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}"
    "{%- else %}{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- '<|image|>' }}"
    "{%- elif part['type'] == 'text' %}{{- part['text'] }}{%- endif %}"
    "{%- endfor %}{%- endif %}"
    "{{- '<|eot|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|header_start|>assistant<|header_end|>\\n\\n' }}{%- endif %}"
)


def special_tokens() -> tuple[str, ...]:
    """The special tokens in the order of their ids: those that cria uses, then reserved ones up to N_SPECIAL."""
    reserved = (f"reserved_special_token_{number}" for number in range(N_SPECIAL - len(SPECIAL_NAMES)))
    return tuple(f"<|{name}|>" for name in (*SPECIAL_NAMES, *reserved))


def balanced_sample(rng: Random, texts: Mapping[str, Sequence[str]], n_characters: int) -> list[str]:
    """Texts of every language, about `n_characters` of each; a language with fewer is repeated, at most four times.

    Without the repetition the languages with little text would be spelt in bytes.
    """
    sample: list[str] = []
    for language in sorted(texts):
        order = rng.sample(list(texts[language]), len(texts[language]))
        taken = 0
        for text in islice(cycle(order), 4 * len(order)):
            if taken >= n_characters:
                break
            sample.append(text)
            taken += len(text)
    return sample


def learn_ranks(texts: Iterable[str], n_ranks: int) -> list[bytes]:
    """`n_ranks` tokens: the 256 bytes in order, then merges in the order learnt.

    Raises ConfigError where the texts hold too few different words for so many merges.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    letters = byte_letters()
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=n_ranks, initial_alphabet=list(letters.values()), show_progress=False, max_token_length=24
    )
    learner.train_from_iterator(texts, trainer)
    ids = learner.get_vocab()
    if len(ids) < n_ranks:
        raise ConfigError(
            f"n_ranks: the texts give only {len(ids)} tokens, not {n_ranks}; give more text or ask for fewer"
        )
    bytes_of = {letter: bytes([value]) for value, letter in letters.items()}
    learnt = [b"".join(bytes_of[letter] for letter in token) for token in sorted(ids, key=lambda token: ids[token])]
    return [bytes([value]) for value in range(256)] + [token for token in learnt if len(token) > 1]


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merges that make a BPE of pairs do what the ranks do.

    For each token every split into two known tokens, ordered by the rank of the token, then by the ranks of the parts.
    """
    merges = []
    for token, rank in ranks.items():
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in ranks and right in ranks:
                merges.append((rank, ranks[left], ranks[right], left, right))
    return [(left, right) for *_, left, right in sorted(merges)]


def write_tokenizer(ranks: Sequence[bytes], folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json for `ranks` followed by the special tokens.

    There is no post-processor: the chat template writes begin_of_text itself, and a tokenizer that added another one
    would make two. Whoever encodes plain text adds begin_of_text, as the reference tokenizer of Llama 4 does where it
    is told bos=True.
    """
    letters = byte_letters()

    def spelt(token: bytes) -> str:
        return "".join(letters[value] for value in token)

    specials = special_tokens()
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": len(ranks) + number,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, name in enumerate(specials)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {spelt(token): rank for rank, token in enumerate(ranks)},
            "merges": [
                [spelt(left), spelt(right)] for left, right in merges_of({t: rank for rank, t in enumerate(ranks)})
            ],
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot|>",
        "pad_token": "<|finetune_right_pad|>",
        "image_token": "<|image|>",
        "boi_token": "<|image_start|>",
        "eoi_token": "<|image_end|>",
        "patch_token": "<|patch|>",
        "tile_x_separator_token": "<|tile_x_separator|>",
        "tile_y_separator_token": "<|tile_y_separator|>",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "chat_template": CHAT_TEMPLATE,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1) + "\n", "utf-8")


def byte_letters() -> dict[int, str]:
    """The printable letter that stands for each byte in tokenizer.json.

    Source: bytes_to_unicode of GPT-2's encoder.py: printable Latin-1 stands for itself, the others for 256 and above.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in printable]
    return {value: chr(value) for value in printable} | {value: chr(256 + at) for at, value in enumerate(others)}
