"""The encoder of Prompt Guard 2: DeBERTa-v2 with a head for two classes, read from Hugging Face's files.

In: ids of texts. Out: logits; the last class is the attack, whatever the labels are called. Attention sees content and
distance apart: besides query and key of the tokens there are those of the distances between them, in buckets that
widen with distance, made by the same projections. Not here: texts (`unigram`), windows and verdicts (`prompt_guard`).

Source: He et al. 2021, "DeBERTa" (arXiv 2006.03654), equations 2 to 4 and algorithm 1; transformers 5.23,
`models/deberta_v2/modeling_deberta_v2.py` (log buckets, names of parameters); model cards of Prompt Guard 2.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from puna.errors import ConfigError, WeightsError
from puna.weights import safetensors
from puna.weights.stored import read_whole

# What this encoder does and other DeBERTas may do otherwise.
FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("deberta-v2",),
    "hidden_act": ("gelu",),
    "pooler_hidden_act": ("gelu",),
    "relative_attention": (True,),
    "share_att_key": (True,),
    "position_biased_input": (False,),
    "norm_rel_ebd": ("layer_norm",),
    "type_vocab_size": (0,),
    "conv_kernel_size": (0, None),
}
DIRECTIONS = {"c2p", "p2c"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DebertaConfig:
    """`n_buckets` distances to each side have embeddings of their own; `max_distance` is where the last one begins."""

    vocab_size: int
    width: int
    n_layers: int
    n_heads: int
    mlp_width: int
    norm_eps: float
    n_buckets: int
    max_distance: int
    n_classes: int

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "DebertaConfig":
        """Reads a parsed `config.json`. Raises ConfigError for what is missing, or another kind of DeBERTa."""
        for key, allowed in FIXED.items():
            if config.get(key, allowed[-1]) not in allowed:
                raise ConfigError(f"{key}: {config[key]!r} is not supported; Prompt Guard 2 has {allowed[0]!r}")
        kinds = config.get("pos_att_type", ())
        if set(kinds.split("|") if isinstance(kinds, str) else kinds) != DIRECTIONS:
            raise ConfigError(f"pos_att_type: {kinds!r} is not supported; Prompt Guard 2 has 'p2c|c2p'")
        try:
            longest = int(config["max_position_embeddings"])
            named = int(config.get("max_relative_positions", -1))
            return cls(
                vocab_size=int(config["vocab_size"]),
                width=int(config["hidden_size"]),
                n_layers=int(config["num_hidden_layers"]),
                n_heads=int(config["num_attention_heads"]),
                mlp_width=int(config["intermediate_size"]),
                norm_eps=float(config.get("layer_norm_eps", 1e-7)),
                n_buckets=int(config["position_buckets"]),
                max_distance=named if named > 0 else longest,
                n_classes=len(config.get("id2label", ())) or int(config.get("num_labels", 2)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"config.json: {error} is missing or no number; the file is incomplete") from error


class Attention(nn.Module):
    """Attention over content and distance. Shapes: B texts, T tokens, N heads of size H, K distances."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, distances: Tensor, places: Tensor, is_text: Tensor) -> Tensor:
        """Returns float [B T D] of `x` [B T D]; `distances` [K D], `places` int64 [T T] among them, `is_text` [B T]."""
        query, key, value = self._heads(self.query(x)), self._heads(self.key(x)), self._heads(self.value(x))  # B N T H
        far_key, far_query = self._heads(self.key(distances)[None]), self._heads(self.query(distances)[None])  # 1 N K H
        shape = (*query.shape[:2], *places.shape)
        to_distance = (query @ far_key.mT).gather(-1, places.expand(shape))  # B N T T
        from_distance = (key @ far_query.mT).gather(-1, places.mT.expand(shape)).mT
        scores = (query @ key.mT + to_distance + from_distance) / math.sqrt(3 * query.shape[-1])
        scores = scores.masked_fill(~is_text[:, None, None, :], torch.finfo(scores.dtype).min)
        mixed = scores.softmax(dim=-1) @ value
        return self.output(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.n_heads, -1).transpose(1, 2)  # B N T H


class Layer(nn.Module):
    """Attention and feed-forward, each added to its input and then normalised."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.up = nn.Linear(config.width, config.mlp_width)
        self.down = nn.Linear(config.mlp_width, config.width)
        self.mlp_norm = nn.LayerNorm(config.width, config.norm_eps)

    def forward(self, x: Tensor, distances: Tensor, places: Tensor, is_text: Tensor) -> Tensor:
        """Returns float [B T D], arguments as in `Attention`."""
        x = self.attention_norm(x + self.attention(x, distances, places, is_text))
        return self.mlp_norm(x + self.down(F.gelu(self.up(x))))  # type: ignore[no-any-return]


class Deberta(nn.Module):
    """The classifier."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.embedding_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.distances = nn.Embedding(2 * config.n_buckets, config.width)
        self.distances_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.pooler = nn.Linear(config.width, config.width)
        self.classifier = nn.Linear(config.width, config.n_classes)

    def forward(self, ids: Tensor, is_text: Tensor) -> Tensor:
        """Returns logits [B classes] of `ids` int64 [B T]; `is_text` [B T] says which are no padding."""
        places = buckets(ids.shape[1], self.config).to(ids.device)
        distances = self.distances_norm(self.distances.weight)
        x = self.embedding_norm(self.embedding(ids)) * is_text[..., None]
        for layer in self.layers:
            x = layer(x, distances, places, is_text)
        return self.classifier(F.gelu(self.pooler(x[:, 0])))  # type: ignore[no-any-return]


def buckets(n_tokens: int, config: DebertaConfig) -> Tensor:
    """Returns int64 [T T]: the number of the distance from each query to each key, in 0..2 * n_buckets - 1.

    Distances up to half of `n_buckets` have one each; beyond, they widen evenly in the logarithm up to `max_distance`.
    """
    middle = config.n_buckets // 2
    steps = torch.arange(n_tokens)
    distance = steps[:, None] - steps[None, :]
    far = distance.abs().clamp(min=middle).float()
    scale = torch.log(torch.tensor((config.max_distance - 1) / middle))
    wide = torch.ceil(torch.log(far / middle) / scale * (middle - 1)) + middle
    number = torch.where(distance.abs() <= middle, distance, (wide * distance.sign()).long())
    return (number + config.n_buckets).clamp(0, 2 * config.n_buckets - 1)


# Files ------------------------------------------------------------------------------------------------------------

_TOP = {
    "deberta.embeddings.word_embeddings": "embedding",
    "deberta.embeddings.LayerNorm": "embedding_norm",
    "deberta.encoder.rel_embeddings": "distances",
    "deberta.encoder.LayerNorm": "distances_norm",
    "pooler.dense": "pooler",
    "classifier": "classifier",
}
_LAYER = {
    "attention.self.query_proj": "attention.query",
    "attention.self.key_proj": "attention.key",
    "attention.self.value_proj": "attention.value",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "mlp_norm",
}


def load(folder: Path, device: torch.device | str = "cpu") -> Deberta:
    """Returns the classifier of a folder with `config.json` and `model.safetensors`, in float32.

    Raises ConfigError or WeightsError that name the file and the key.
    """
    try:
        config = DebertaConfig.from_hf(json.loads((folder / "config.json").read_bytes()))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder / 'config.json'}: cannot be read ({error}); give the folder of the model"
        ) from error
    with torch.device("meta"):
        model = Deberta(config)
    wanted = dict(model.named_parameters())
    state = {}
    for stored in safetensors.index(folder / "model.safetensors"):
        name = own_name(stored.key)
        if name is None:
            continue
        if name not in wanted or stored.shape != tuple(wanted[name].shape):
            raise WeightsError(f"{stored}: of shape {list(stored.shape)} has no place in this configuration")
        state[name] = read_whole(stored).clone().float()
    for name in wanted:
        if name not in state:
            raise WeightsError(f"{folder / 'model.safetensors'}: {name} is missing; fetch the file again")
    model.load_state_dict(state, assign=True)
    return model.to(device).eval().requires_grad_(False)


def own_name(key: str) -> str | None:
    """Returns what a tensor of the file is called here, None for one that is only a buffer."""
    if key.endswith("position_ids"):
        return None
    module, _, kind = key.rpartition(".")
    if module.startswith("deberta.encoder.layer."):
        number, _, rest = module.removeprefix("deberta.encoder.layer.").partition(".")
        return f"layers.{number}.{_LAYER.get(rest, rest)}.{kind}"
    return f"{_TOP.get(module, module)}.{kind}"


def batched(windows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Returns ids int64 [B T] and what of them is no padding, bool [B T]."""
    longest = max(map(len, windows))
    ids = torch.full((len(windows), longest), pad_id)
    for row, window in enumerate(windows):
        ids[row, : len(window)] = torch.tensor(window)
    lens = torch.tensor([len(window) for window in windows])
    return ids, torch.arange(longest) < lens[:, None]
