"""Text to ids and back, from Meta's `tokenizer.model` or a Hugging Face `tokenizer.json`.

In: text of any length. Out: ids of byte-pair tokens. User text never becomes a special token: `encode` does not know
them, so the nine characters of "<|eot|>" are encoded as text; callers place special ids by name (`puna.prompt.vocab`).
Not here: headers, turns, pictures (`render`), and showing half-finished text (`detokenize`).

Text that is not valid Unicode follows Meta: a surrogate pair counts as its character, a lone surrogate as U+FFFD.

Source: llama_models 0.3.0, `models/llama4/tokenizer.py` (file format, split pattern, length limits).
"""

import json
import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tiktoken

from puna.errors import ConfigError, PromptError
from puna.prompt.vocab import BEGIN_OF_TEXT, SPECIAL_NAMES, STOP_NAMES, special_id

MAX_PIECE_CHARS = 400_000
"""Longest text given to the byte-pair encoder at once. Source: TIKTOKEN_MAX_ENCODE_CHARS in Meta's tokenizer."""

MAX_RUN_CHARS = 25_000
"""Longest run of only blanks or of no blanks within a piece. Source: MAX_NO_WHITESPACES_CHARS in Meta's tokenizer."""

SPLIT_PATTERN = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""How Llama 4 cuts text into words before merging bytes. Source: O200K_PATTERN in Meta's tokenizer."""

_RUN = re.compile(r"\s+|\S+")


class Tokenizer:
    """Byte-pair tokens plus a table of special tokens. Does not change, and is safe to share between threads."""

    def __init__(self, *, ranks: Mapping[bytes, int], special: Mapping[str, int], pattern: str, name: str) -> None:
        """`ranks` maps the bytes of a token to its id, lower ids merging first; `name` is what errors call the file.

        Raises ConfigError when a byte has no token, an id is used twice, or `pattern` is not a regular expression.
        """
        missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
        if missing:
            raise ConfigError(f"{name}: byte {missing[0]:#04x} has no token; the vocabulary must hold all 256 bytes")
        shared = set(ranks.values()) & set(special.values())
        if shared or len(set(ranks.values())) < len(ranks) or len(set(special.values())) < len(special):
            raise ConfigError(f"{name}: two tokens share an id (ids shared with special tokens: {sorted(shared)[:3]})")
        try:
            self._encoding = tiktoken.Encoding(
                name=name, pat_str=pattern, mergeable_ranks=dict(ranks), special_tokens=dict(special)
            )
        except ValueError as error:
            raise ConfigError(f"{name}: the split pattern is not a usable regular expression: {error}") from error
        self.special: Mapping[str, int] = MappingProxyType(dict(special))
        self.stop_ids: frozenset[int] = frozenset(special[stop] for stop in STOP_NAMES if stop in special)
        self.vocab_size: int = 1 + max(chain(ranks.values(), special.values()))
        self._special_ids = frozenset(special.values())
        self._bytes_of: dict[int, bytes] = {}
        self._made_of = dict(ranks), dict(special), pattern, name

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads a `tokenizer.json`, a `tokenizer.model`, or a directory that holds one of them.

        In a directory that holds both, `tokenizer.json` wins, since only it lists the checkpoint's own special tokens.
        Raises ConfigError when there is no such file or when it describes something other than byte-level BPE.
        """
        file = _find(Path(path))
        if file.suffix == ".json":
            ranks, special, pattern = _read_json(file)
            return cls(ranks=ranks, special=special, pattern=pattern, name=str(file))
        ranks = _read_model(file)
        special = {name: len(ranks) + index for index, name in enumerate(SPECIAL_NAMES)}
        return cls(ranks=ranks, special=special, pattern=SPLIT_PATTERN, name=str(file))

    def __reduce__(self) -> tuple[Any, ...]:
        """Lets another process have it."""
        return _made, self._made_of

    @property
    def bos_id(self) -> int:
        """The id of begin_of_text. Raises PromptError when the vocabulary has none."""
        return special_id(self.special, BEGIN_OF_TEXT)

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_ids

    def token_bytes(self) -> list[bytes]:
        """Returns the bytes of every id, for special tokens those of their name; ids without a token have none."""
        tokens = [b""] * self.vocab_size
        for token in self._encoding.token_byte_values():
            tokens[self._encoding.encode_single_token(token)] = token
        for name, token_id in self.special.items():
            tokens[token_id] = name.encode()
        return tokens

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, none of them special; an empty text has none."""
        ids: list[int] = []
        for start in range(0, len(text), MAX_PIECE_CHARS):
            for piece in _split_runs(text[start : start + MAX_PIECE_CHARS]):
                ids += self._encoding.encode_ordinary(piece)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`, special tokens shown as their names, invalid UTF-8 as U+FFFD.

        Raises PromptError for an id outside the vocabulary.
        """
        return self._bytes(list(ids)).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Returns the bytes of `ids` without special tokens. Raises PromptError for an id outside the vocabulary."""
        return self._bytes([token_id for token_id in ids if not self.is_special(token_id)])

    def bytes_of(self, token_id: int) -> bytes:
        """Returns the bytes of one id that is not special, remembered for the next time. Raises as `decode_bytes`."""
        if token_id not in self._bytes_of:
            self._bytes_of[token_id] = self._bytes([token_id])
        return self._bytes_of[token_id]

    def _bytes(self, ids: list[int]) -> bytes:
        try:
            return self._encoding.decode_bytes(ids)
        except (KeyError, OverflowError, TypeError) as error:
            unknown = next(token_id for token_id in ids if not self._knows(token_id))
            raise PromptError(f"token id {unknown} is not in this vocabulary of {self.vocab_size} tokens") from error

    def _knows(self, token_id: int) -> bool:
        try:
            self._encoding.decode_single_token_bytes(token_id)
        except (KeyError, OverflowError, TypeError):
            return False
        return True


def _made(ranks: dict[bytes, int], special: dict[str, int], pattern: str, name: str) -> Tokenizer:
    return Tokenizer(ranks=ranks, special=special, pattern=pattern, name=name)


def _split_runs(text: str) -> Iterator[str]:
    """Yields `text` in pieces none of which has a run of blanks, or of other characters, over MAX_RUN_CHARS."""
    start = 0
    if len(text) > MAX_RUN_CHARS:
        for run in _RUN.finditer(text):
            for cut in range(run.start() + MAX_RUN_CHARS, run.end(), MAX_RUN_CHARS):
                yield text[start:cut]
                start = cut
    yield text[start:]


# Files ------------------------------------------------------------------------------------------------------------


def _find(path: Path) -> Path:
    if path.is_dir():
        for name in ("tokenizer.json", "tokenizer.model"):
            if (path / name).is_file():
                return path / name
        raise ConfigError(f"{path}: holds neither tokenizer.json nor tokenizer.model; copy one from the checkpoint")
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file or directory; give a tokenizer.json, a tokenizer.model or their folder"
        )
    if path.suffix not in (".json", ".model"):
        raise ConfigError(f"{path}: a tokenizer file ends in .json (Hugging Face) or .model (Meta)")
    return path


def _read_model(file: Path) -> dict[bytes, int]:
    """Reads lines of `base64 rank`. The ranks must be 0, 1, 2, ..., since special tokens follow at their number."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[b64decode(token, validate=True)] = int(rank)
        except (ValueError, Base64Error) as error:
            raise ConfigError(f"{file}, line {number}: expected a base64 token and its rank, as Meta writes") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ConfigError(f"{file}: ranks are not 0 to {len(ranks) - 1}, each once; the file is cut or altered")
    return ranks


def _read_json(file: Path) -> tuple[dict[bytes, int], dict[str, int], str]:
    """Returns ranks, special tokens and split pattern. Every added token is special: none can come from user text."""
    try:
        document = json.loads(file.read_bytes())
        model = document["model"]
        special = {str(token["content"]): int(token["id"]) for token in document.get("added_tokens") or ()}
        pattern = _split_pattern(document, file)
        ranks = _ranks(model, special, file)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{file}: not a tokenizer.json of byte-level BPE ({type(error).__name__}: {error})"
        ) from error
    return ranks, special, pattern


def _split_pattern(document: Mapping[str, Any], file: Path) -> str:
    """Returns the pattern of the Split step, which must be followed by bytes and nothing else."""
    if document.get("normalizer") is not None:
        raise ConfigError(
            f"{file}: normalizer {document['normalizer'].get('type')!r} would change the text; expected null"
        )
    steps = (document.get("pre_tokenizer") or {}).get("pretokenizers") or []
    if [step.get("type") for step in steps] != ["Split", "ByteLevel"] or not _splits_only(*steps):
        raise ConfigError(
            f"{file}: pre_tokenizer must be Split (isolated), then ByteLevel without prefix space and regex"
        )
    pattern = steps[0]["pattern"]
    return str(pattern["Regex"]) if "Regex" in pattern else re.escape(pattern["String"])


def _splits_only(split: Mapping[str, Any], byte_level: Mapping[str, Any]) -> bool:
    isolated = split.get("behavior") == "Isolated" and not split.get("invert")
    return isolated and not byte_level.get("add_prefix_space") and not byte_level.get("use_regex", True)


def _ranks(model: Mapping[str, Any], special: Mapping[str, int], file: Path) -> dict[bytes, int]:
    """Returns the bytes and id of each token, after checking that merging by id is the same as merging by the list."""
    if model["type"] != "BPE" or model.get("byte_fallback") or model.get("dropout"):
        raise ConfigError(f"{file}: model.type {model['type']!r} is not plain BPE without dropout and byte fallback")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ConfigError(f"{file}: model.continuing_subword_prefix and end_of_word_suffix must be empty")
    vocab = {token: token_id for token, token_id in model["vocab"].items() if token not in special}
    _check_merges(vocab, model["merges"], file)
    alphabet = _byte_alphabet()
    return {token.translate(alphabet).encode("latin-1"): token_id for token, token_id in vocab.items()}


def _check_merges(vocab: Mapping[str, int], merges: Iterable[str | list[str]], file: Path) -> None:
    """Raises ConfigError unless ids say the same as `merges`: the list follows the ids of the tokens that it makes, and
    each token of several bytes is made at least once from two earlier ones.

    Then merging by id and by list agree. A token is always reached from the pieces that its own bytes merge into, the
    list holds that pair since the token was learnt from it, and both orders are the same. Lists converted from Meta's
    file hold every other pair as well; those are never reached.
    """
    last, made = -1, set()
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        token_id = vocab.get(left + right, -1)
        if token_id < last or left not in vocab or right not in vocab:
            raise ConfigError(
                f"{file}: merge {left!r} + {right!r} is out of the order of the token ids; sort or retrain"
            )
        last = token_id
        if vocab[left] < token_id and vocab[right] < token_id:
            made.add(left + right)
    for token in vocab:
        if len(token) > 1 and token not in made:
            raise ConfigError(f"{file}: token {token!r} has no merge that makes it; the file is cut or altered")


def _byte_alphabet() -> dict[int, int]:
    """Returns a table for `str.translate` from the characters that stand for bytes to Latin-1, where bytes are plain.

    Printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100 and up, in order; those 68 do not
    occur as themselves, so they are sent out of Latin-1. Source: `bytes_to_unicode` of GPT-2, `src/encoder.py`.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {0x100 + index: byte for index, byte in enumerate(others)} | dict.fromkeys(others, 0xFFFF)
