"""What every parameter is called in each file format, how it lies there, and along which axis Meta's shards cut it.

In: a configuration. Out: layouts, each saying which of our parameters one tensor of a file holds and in which order.
Not here: files, dtypes, numbers; this file needs no torch. One table serves reading and writing, so that both agree.

Ours are matrices [out, in] as in nn.Linear, experts [E, out, in]. Both other formats store experts [E, in, out]; Meta
also stores the router [in, out], merges the expert axis into the rows, and stacks some matrices into one tensor.
Source: llama-models `models/llama4/model.py`, `moe.py`, `ffn.py` (load hooks) and `checkpoint.py` (shard axes);
transformers `models/llama4/convert_llama4_weights_to_hf.py` and `modeling_llama4.py`; docs/sources.md.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from puna.config import LlamaConfig

OUT, IN = -2, -1  # axes of our matrices; a vector is cut along IN, its only axis


class Row(NamedTuple):
    """One parameter of ours, or one of the two halves of a gate_up, in all formats. {n} is the layer, {e} the expert.

    Rows with the same `meta` are stacked there in the order of this table. `module` is the name that Meta's own module
    gives the tensor once it is loaded, which later exports of Meta's code carry; experts are not merged there.
    """

    ours: str
    hf: str
    meta: str
    axis: int | None  # what Meta's shards cut; None: each shard has all of it
    module: str = ""
    unfused: str = ""  # the key of one expert in Hugging Face files that keep experts apart, stored [out, in]
    in_first: str = ""  # the formats ("hf", "meta") that store this matrix [in, out]
    half: int | None = None  # which half of our output rows; None: all of them


_HF_LAYER = "language_model.model.layers.{n}."
_HF_BLOCK = "vision_model.model.layers.{n}."
_META_BLOCK = "vision_embeddings.vision_encoder.transformer.resblocks.{n}."
_META_VISION = "vision_embeddings.vision_encoder."
_EXPERT = _HF_LAYER + "feed_forward.experts.{e}."

_TOP = (
    Row("embedding.weight", "language_model.model.embed_tokens.weight", "tok_embeddings.weight", OUT),
    Row("norm.weight", "language_model.model.norm.weight", "norm.weight", None),
    Row("head.weight", "language_model.lm_head.weight", "output.weight", OUT),
)
_ATTENTION = (
    Row(
        "layers.{n}.attention_norm.weight",
        _HF_LAYER + "input_layernorm.weight",
        "layers.{n}.attention.wqkv.layer_norm_weight",
        None,
    ),
    *(
        Row(
            f"layers.{{n}}.attention.{name}.weight",
            f"{_HF_LAYER}self_attn.{name[0]}_proj.weight",
            "layers.{n}.attention.wqkv.weight",
            OUT,
            module=f"layers.{{n}}.attention.w{name[0]}.weight",
        )
        for name in ("query", "key", "value")
    ),
    Row(
        "layers.{n}.attention.output.weight",
        _HF_LAYER + "self_attn.o_proj.weight",
        "layers.{n}.attention.wo.weight",
        IN,
    ),
)
_FEED_FORWARD_NORM = Row(
    "layers.{n}.feed_forward_norm.weight",
    _HF_LAYER + "post_attention_layernorm.weight",
    "layers.{n}.feed_forward.norm.weight",
    None,
)
_DENSE = (
    _FEED_FORWARD_NORM._replace(meta="layers.{n}.feed_forward.mlp.layer_norm_weight"),
    Row(
        "layers.{n}.mlp.gate.weight",
        _HF_LAYER + "feed_forward.gate_proj.weight",
        "layers.{n}.feed_forward.mlp.fc1_weight",
        OUT,
        module="layers.{n}.feed_forward.w1.weight",
    ),
    Row(
        "layers.{n}.mlp.up.weight",
        _HF_LAYER + "feed_forward.up_proj.weight",
        "layers.{n}.feed_forward.mlp.fc1_weight",
        OUT,
        module="layers.{n}.feed_forward.w3.weight",
    ),
    Row(
        "layers.{n}.mlp.down.weight",
        _HF_LAYER + "feed_forward.down_proj.weight",
        "layers.{n}.feed_forward.mlp.fc2_weight",
        IN,
        module="layers.{n}.feed_forward.w2.weight",
    ),
)
_MOE = (
    _FEED_FORWARD_NORM,
    Row(
        "layers.{n}.moe.router.weight",
        _HF_LAYER + "feed_forward.router.weight",
        "layers.{n}.feed_forward.router_DE",
        None,
        in_first="meta",
    ),
    Row(
        "layers.{n}.moe.experts.gate_up",
        _HF_LAYER + "feed_forward.experts.gate_up_proj",
        "layers.{n}.feed_forward.experts.moe_w_in_eD_F",
        OUT,
        module="layers.{n}.feed_forward.experts.w1",
        unfused=_EXPERT + "gate_proj.weight",
        in_first="hf meta",
        half=0,
    ),
    Row(
        "layers.{n}.moe.experts.gate_up",
        _HF_LAYER + "feed_forward.experts.gate_up_proj",
        "layers.{n}.feed_forward.experts.moe_w_swiglu_eD_F",
        OUT,
        module="layers.{n}.feed_forward.experts.w3",
        unfused=_EXPERT + "up_proj.weight",
        in_first="hf meta",
        half=1,
    ),
    Row(
        "layers.{n}.moe.experts.down",
        _HF_LAYER + "feed_forward.experts.down_proj",
        "layers.{n}.feed_forward.experts.moe_w_out_eF_D",
        IN,
        module="layers.{n}.feed_forward.experts.w2",
        unfused=_EXPERT + "down_proj.weight",
        in_first="hf meta",
    ),
    Row(
        "layers.{n}.moe.shared.gate.weight",
        _HF_LAYER + "feed_forward.shared_expert.gate_proj.weight",
        "layers.{n}.feed_forward.w_in_shared_FD.weight",
        OUT,
        module="layers.{n}.feed_forward.shared_expert.w1.weight",
    ),
    Row(
        "layers.{n}.moe.shared.up.weight",
        _HF_LAYER + "feed_forward.shared_expert.up_proj.weight",
        "layers.{n}.feed_forward.w_swiglu_FD.weight",
        OUT,
        module="layers.{n}.feed_forward.shared_expert.w3.weight",
    ),
    Row(
        "layers.{n}.moe.shared.down.weight",
        _HF_LAYER + "feed_forward.shared_expert.down_proj.weight",
        "layers.{n}.feed_forward.w_out_shared_DF.weight",
        IN,
        module="layers.{n}.feed_forward.shared_expert.w2.weight",
    ),
)
_VISION = (
    Row(
        "vision.patch.weight", "vision_model.patch_embedding.linear.weight", _META_VISION + "conv1._linear.weight", OUT
    ),
    Row("vision.class_token", "vision_model.class_embedding", _META_VISION + "class_embedding", None),
    Row("vision.positions", "vision_model.positional_embedding_vlm", _META_VISION + "positional_embedding_vlm", None),
    *(
        Row(
            f"vision.norm_{ours}.{kind}",
            f"vision_model.layernorm_{name}.{kind}",
            f"{_META_VISION}ln_{name}.{kind}",
            None,
        )
        for ours, name in (("before", "pre"), ("after", "post"))
        for kind in ("weight", "bias")
    ),
    Row(
        "vision.adapter.up.weight",
        "vision_model.vision_adapter.mlp.fc1.weight",
        "vision_embeddings.vision_adapter.mlp.c_fc.weight",
        OUT,
    ),
    Row(
        "vision.adapter.down.weight",
        "vision_model.vision_adapter.mlp.fc2.weight",
        "vision_embeddings.vision_adapter.mlp.c_proj.weight",
        IN,
    ),
    Row("projector.weight", "multi_modal_projector.linear_1.weight", "vision_projection.weight", OUT),
)
# Linear maps of a vision block, with biases. A bias behind a map that is cut along its input is added once, after the
# shards are summed: every shard holds all of it.
_VISION_BLOCK = (
    *(
        Row(f"vision.layers.{{n}}.{ours}.{kind}", f"{_HF_BLOCK}{hf}.{kind}", f"{_META_BLOCK}{meta}.{kind}", None)
        for ours, hf, meta in (
            ("attention_norm", "input_layernorm", "ln_1"),
            ("mlp_norm", "post_attention_layernorm", "ln_2"),
        )
        for kind in ("weight", "bias")
    ),
    *(
        row
        for ours, hf, meta, axis in (
            ("attention.query", "self_attn.q_proj", "attn.wq", OUT),
            ("attention.key", "self_attn.k_proj", "attn.wk", OUT),
            ("attention.value", "self_attn.v_proj", "attn.wv", OUT),
            ("attention.output", "self_attn.o_proj", "attn.wo", IN),
            ("mlp.up", "mlp.fc1", "mlp.c_fc", OUT),
            ("mlp.down", "mlp.fc2", "mlp.c_proj", IN),
        )
        for row in (
            Row(f"vision.layers.{{n}}.{ours}.weight", f"{_HF_BLOCK}{hf}.weight", f"{_META_BLOCK}{meta}.weight", axis),
            Row(
                f"vision.layers.{{n}}.{ours}.bias",
                f"{_HF_BLOCK}{hf}.bias",
                f"{_META_BLOCK}{meta}.bias",
                IN if axis == OUT else None,
            ),
        )
    ),
)

# A position table before Meta's load hook resamples it; where present, it overrides the resampled one.
META_RAW_POSITIONS = _META_VISION + "positional_embedding"

# The names that norms have in one or another of Meta's exports, by the name of Meta's module.
_META_NORMS = (
    (re.compile(r"\.attention\.wqkv\.layer_norm_weight$"), ".attention_norm.weight"),
    (re.compile(r"\.feed_forward\.(norm\.weight|mlp\.layer_norm[._]weight)$"), ".ffn_norm.weight"),
)
# What Meta's load hooks drop: rotation tables, states of their fused modules, routing statistics of the training.
_META_DROPPED = re.compile(
    r"rope\.freqs|freqs?_cis|.*\._extra_state|.*(global|running)_gate_stats_3E|.*\.expert_activation_DE"
)
# Scales of activations and of a quantised cache: dropped, because activations are not quantised here; the weights
# themselves do not depend on them. Rotation tables are computed, not read. The shape of packed weights is known.
_HF_DROPPED = re.compile(
    r".*[._](input_scale|input_scale_ub|output_scale|k_scale|v_scale|weight_shape|inv_freq|freqs_ci)"
)
PACKED = ".weight_packed"  # compressed-tensors' name for the words of a packed `.weight`


class Part(NamedTuple):
    """A piece of one of our parameters: `half` of the output rows, of one `expert`, cut along `axis` by shards."""

    name: str
    axis: int | None
    half: int | None = None
    expert: int | None = None


class Layout(NamedTuple):
    """One tensor of a file: its parts, stacked along its rows; `in_first`: each matrix lies there as [in, out];
    `merged`: the expert axis is merged into the rows."""

    key: str
    parts: tuple[Part, ...]
    in_first: bool
    merged: bool


def rows(config: LlamaConfig) -> Iterator[Row]:
    """Yields the table for this model, layers filled in, in the order in which files are written."""
    yield _TOP[0]
    for layer in range(config.text.n_layers):
        yield from _numbered(_ATTENTION + (_MOE if config.text.is_moe(layer) else _DENSE), layer)
    yield from _TOP[1:]
    if config.vision is not None:
        yield from _VISION
        for layer in range(config.vision.n_layers):
            yield from _numbered(_VISION_BLOCK, layer)


def hf_layouts(config: LlamaConfig) -> list[Layout]:
    """Returns the tensors that transformers writes, under canonical keys."""
    return _stacked(
        (row.hf, Part(row.ours, None), "hf" in row.in_first, False) for row in rows(config) if row.half != 1
    )


def hf_unfused_layouts(config: LlamaConfig) -> list[Layout]:
    """Returns the other form of experts: one [out, in] matrix per expert and projection, as quantisers write it."""
    return [
        Layout(row.unfused.format(e=e), (Part(row.ours, None, row.half, e),), in_first=False, merged=False)
        for row in rows(config)
        if row.unfused
        for e in range(config.text.n_experts)
    ]


def meta_layouts(config: LlamaConfig) -> list[Layout]:
    """Returns the tensors of each of Meta's `consolidated.*.pth` as published."""
    return _stacked(
        (row.meta, Part(row.ours, row.axis, row.half), "meta" in row.in_first, bool(row.unfused))
        for row in rows(config)
    )


def meta_module_layouts(config: LlamaConfig) -> list[Layout]:
    """Returns the other form: the names of Meta's modules after loading, where nothing is stacked or merged."""
    return _stacked(
        (row.module, Part(row.ours, row.axis, row.half), "meta" in row.in_first, False)
        for row in rows(config)
        if row.module
    )


def canonical_hf(key: str) -> str | None:
    """Returns the key as nested checkpoints of Llama 4 spell it; None for a tensor that is left out on purpose.

    Text-only checkpoints lack the leading `language_model.`; the newer nesting of transformers puts `model.` first.
    """
    if _HF_DROPPED.fullmatch(key):
        return None
    for written, canonical in (
        ("model.language_model.", "language_model.model."),
        ("model.vision_model.", "vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    ):
        if key.startswith(written):
            return canonical + key.removeprefix(written)
    return key


def written_hf(key: str, *, nested: bool) -> str:
    """Returns the canonical key as transformers writes it: text-only models have no `language_model.` in front."""
    return key if nested else key.removeprefix("language_model.")


def canonical_meta(key: str) -> str | None:
    """Returns the key with norms called as Meta's modules call them; None for a tensor that is left out on purpose."""
    if _META_DROPPED.fullmatch(key):
        return None
    for written, canonical in _META_NORMS:
        key = written.sub(canonical, key)
    return key


def scale_keys_hf(key: str) -> tuple[str, ...]:
    """Returns the keys under which the scale of a quantised tensor may be stored, in canonical spelling.

    `X.weight_scale` (compressed-tensors, fbgemm linear maps), `gate_up_proj_scale` (fbgemm experts),
    `gate_up_proj_weight_scale` (ModelOpt experts).
    """
    return (f"{key}_scale",) if key.endswith(".weight") else (f"{key}_scale", f"{key}_weight_scale")


def scale_keys_meta(config: LlamaConfig) -> dict[str, str]:
    """Returns, for each of Meta's routed expert tensors, its key in `fp8_scales_N.pt`: there they go by module names.

    Source: llama-models `models/llama4/scripts/quantize.py`.
    """
    return {row.meta: row.module for row in rows(config) if row.unfused}


def _numbered(table: Iterable[Row], layer: int) -> Iterator[Row]:
    for row in table:
        yield row._replace(
            **{
                field: getattr(row, field).replace("{n}", str(layer))
                for field in ("ours", "hf", "meta", "module", "unfused")
            }
        )


def _stacked(pieces: Iterable[tuple[str, Part, bool, bool]]) -> list[Layout]:
    """Joins pieces with the same key, in their order."""
    layouts: dict[str, Layout] = {}
    for key, part, in_first, merged in pieces:
        before = layouts[key].parts if key in layouts else ()
        layouts[key] = Layout(key, (*before, part), in_first, merged)
    return list(layouts.values())
