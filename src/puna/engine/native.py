"""The runner on a processor with C++ kernels: one call a step, from ids to logits, vision tower excepted.

In: a `Batch`, and the adapters that its rows may have. Out: logits; keys and values are stored on the way, in an order
of their own within a block. Rows without an adapter have the same bits beside others and without.
Not here: the kernels (`kernels/native`), what is in the batch and why. The plain twin is `runner.TorchRunner`.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from puna.engine.batch import Batch, adapters_of
from puna.engine.cache import KVCache
from puna.kernels import native
from puna.kernels.formats import Int4, Int8
from puna.kernels.native import Packed, PackedFactors
from puna.model.deltas import Shelf
from puna.model.rope import text_frequencies
from puna.model.transformer import Block, Llama

_NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}  # of `Numbers` in attention.h


def fits(model: Llama, cache: KVCache) -> bool:
    """Returns whether all matrices of the decoder are packed for the kernels, and the cache holds numbers they know.

    Matrices that read the same numbers must be of one kind: they share a record.
    """
    if not native.available() or cache.dtype not in _NUMBERS:
        return False
    routed = [block.moe for block in _blocks(model) if block.moe is not None]
    routers = {id(moe.router) for moe in routed}
    decoder = [model.head, *(part for block in model.layers for part in block.modules())]
    is_plain = any(isinstance(part, nn.Linear) and id(part) not in routers for part in decoder)
    if is_plain or not all(isinstance(moe.experts.gate_up, Packed) for moe in routed):
        return False
    return all(_read_alike(*linears) for block in _blocks(model) for linears in _sharing_input(block))


class NativeRunner:
    """Runs the decoder of one model over one cache. Matrices that are not packed yet are packed here, beside them."""

    def __init__(self, model: Llama, cache: KVCache, shelf: Shelf | None = None) -> None:
        text = model.config.text
        self._model = model
        self._cache = cache
        self._shelf = shelf
        self._kept: list[
            Tensor | Packed | PackedFactors | native.Delta | native.Deltas
        ] = []  # what the structures point into
        embedding = self._keep(model.embedding.weight.detach().contiguous())
        frequencies = self._keep(text_frequencies(text).contiguous())
        self._layers = (native.Layer * text.n_layers)(
            *(self._layer(block, layer) for layer, block in enumerate(_blocks(model)))
        )
        self._layer_bytes = max(sum(_bytes_read(layer, text.n_active_experts)) for layer in self._layers)
        temperature = text.query_temperature
        self._structure = native.Model(
            layers=self._layers,
            frequencies=frequencies.data_ptr(),
            norm=self._gain(model.norm),
            embedding=embedding.data_ptr(),
            head=self._matrix(model.head),
            head_delta=None if shelf is None else ctypes.pointer(self._delta(model.head)),
            floor_len=0 if temperature is None else temperature.floor_len,
            temperature_scale=0.0 if temperature is None else temperature.scale,
            norm_eps=text.norm_eps,
            embedding_is_bf16=embedding.dtype == torch.bfloat16,
            n_layers=text.n_layers,
            width=text.width,
            n_heads=text.n_heads,
            n_kv_heads=text.n_kv_heads,
            head_dim=text.head_dim,
            n_experts=text.n_experts if text.moe_layers else 0,
            n_active_experts=text.n_active_experts if text.moe_layers else 0,
            chunk_len=text.chunk_len or 0,
        )

    def run(self, batch: Batch) -> Tensor:
        """Returns float32 logits [R V] of `batch.wanted`, and stores the keys and values of all its tokens."""
        config = self._model.config
        logits = torch.empty(len(batch.wanted), config.text.vocab_size)
        tables = [(_table(entry.global_blocks), _table(entry.chunk_blocks)) for entry in batch.entries]
        entries = (native.Entry * len(tables))(
            *(
                native.Entry(of_global.data_ptr(), of_chunked.data_ptr(), entry.n_new, entry.start, entry.chunk_base)
                for entry, (of_global, of_chunked) in zip(batch.entries, tables, strict=True)
            )
        )
        features, feature_row = None, None
        if batch.features is not None:
            features = batch.features.detach().float().contiguous()
            is_patch = batch.ids.eq(-1 if config.patch_id is None else config.patch_id)
            feature_row = torch.where(is_patch, is_patch.cumsum(0) - 1, -1)  # T
        adapters = self._adapters(batch)
        native.forward(
            self._structure,
            native.Batch(
                ids=batch.ids.data_ptr(),
                features=None if features is None else features.data_ptr(),
                feature_row=None if feature_row is None else feature_row.data_ptr(),
                entries=entries,
                wanted=batch.wanted.data_ptr(),
                adapters=None if adapters is None else adapters.data_ptr(),
                logits=logits.data_ptr(),
                routes=None if batch.routes is None else batch.routes.data_ptr(),
                n_tokens=len(batch.ids),
                n_entries=len(tables),
                n_wanted=len(batch.wanted),
            ),
            layer_bytes=self._layer_bytes,
        )
        return logits  # R V

    def _layer(self, block: Block, layer: int) -> native.Layer:
        attention, text = block.attention, self._model.config.text
        structure = native.Layer(
            attention_norm=self._gain(block.attention_norm),
            feed_forward_norm=self._gain(block.feed_forward_norm),
            query=self._matrix(attention.query),
            key=self._matrix(attention.key),
            value=self._matrix(attention.value),
            output=self._matrix(attention.output),
            store=self._store(layer),
            uses_rope=attention.uses_rope,
            uses_qk_norm=attention.norm_eps is not None,
            uses_temperature=not attention.uses_rope and text.query_temperature is not None,
            is_chunked=text.chunk_len_of(layer) is not None,
        )
        if block.moe is None:
            feed_forward = block.mlp
        else:
            feed_forward, experts = block.moe.shared, block.moe.experts
            structure.router = self._matrix(block.moe.router)
            structure.gate_up = self._packed(experts.gate_up)
            structure.down = self._packed(experts.down)
        assert feed_forward is not None, "a layer is dense or routed"
        structure.shared_gate = self._matrix(feed_forward.gate)
        structure.shared_up = self._matrix(feed_forward.up)
        structure.shared_down = self._matrix(feed_forward.down)
        if self._shelf is not None:
            structure.deltas = ctypes.pointer(self._deltas(block))
        return structure

    def _adapters(self, batch: Batch) -> Tensor | None:
        """Returns the number of each row's adapter, int32 [T]; None where no row has any."""
        if all(entry.adapter < 0 for entry in batch.entries):
            return None
        assert self._shelf is not None, "the engine knows no adapter without a shelf"
        return adapters_of(batch).to(torch.int32)

    def _deltas(self, block: Block) -> native.Deltas:
        """Returns what adapters add to the maps of one layer."""
        attention, feed_forward = block.attention, block.mlp if block.moe is None else block.moe.shared
        assert feed_forward is not None, "a layer is dense or routed"
        deltas = native.Deltas(
            query=self._delta(attention.query),
            key=self._delta(attention.key),
            value=self._delta(attention.value),
            output=self._delta(attention.output),
            shared_gate=self._delta(feed_forward.gate),
            shared_up=self._delta(feed_forward.up),
            shared_down=self._delta(feed_forward.down),
        )
        if block.moe is not None:
            deltas.router = self._delta(block.moe.router)
            deltas.gate_up = self._delta(block.moe.experts, "gate_up")
            deltas.down = self._delta(block.moe.experts, "down")
        return deltas

    def _delta(self, part: nn.Module, leaf: str = "weight") -> native.Delta:
        factors = None if self._shelf is None else self._shelf.packed(part, leaf)
        if factors is not None:
            self._kept.append(factors)
        return native.delta_of(factors)

    def _store(self, layer: int) -> native.Store:
        stored = self._cache.stored(layer)
        native.use_large_pages(stored.keys)
        native.use_large_pages(stored.values)
        return native.Store(
            keys=stored.keys.data_ptr(),
            values=stored.values.data_ptr(),
            key_scales=None if stored.key_scales is None else stored.key_scales.data_ptr(),
            value_scales=None if stored.value_scales is None else stored.value_scales.data_ptr(),
            numbers=_NUMBERS[stored.keys.dtype],
            n_kv_heads=stored.keys.shape[1],
            block_len=stored.keys.shape[2],
            head_dim=stored.keys.shape[3],
        )

    def _matrix(self, module: nn.Module) -> native.Matrix:
        weight = module.weight
        assert isinstance(weight, Tensor | Int4 | Int8 | Packed), "a linear map"
        return self._packed(weight)

    def _packed(self, weight: Tensor | Int4 | Int8 | Packed) -> native.Matrix:
        packed = weight if isinstance(weight, Packed) else native.pack(weight)
        self._kept.append(packed)
        return native.matrix_of(packed)

    def _gain(self, norm: nn.Module) -> int:
        assert isinstance(norm.weight, Tensor), "a norm has a gain"
        return self._keep(norm.weight.detach().float().contiguous()).data_ptr()

    def _keep(self, tensor: Tensor) -> Tensor:
        self._kept.append(tensor)
        return tensor


def _sharing_input(block: Block) -> list[tuple[nn.Module, ...]]:
    """Returns the maps of a layer that read the same record of an activation."""
    attention, feed_forward = block.attention, block.mlp if block.moe is None else block.moe.shared
    assert feed_forward is not None, "a layer is dense or routed"
    return [(attention.query, attention.key, attention.value), (feed_forward.gate, feed_forward.up)]


def _read_alike(*linears: nn.Module) -> bool:
    return len({_kind_of(linear) for linear in linears}) == 1


def _kind_of(linear: nn.Module) -> str | None:
    weight = linear.weight
    return weight.kind if isinstance(weight, Packed) else None


def _bytes_read(layer: native.Layer, n_active_experts: int) -> list[int]:
    """Returns the bytes of each matrix of a layer that one token reads."""
    matrices = [getattr(layer, name) for name, kind in layer._fields_ if kind is native.Matrix]
    return [matrix.expert_bytes * min(matrix.n_experts, n_active_experts or 1) for matrix in matrices]


def _table(blocks: Sequence[int]) -> Tensor:
    return torch.tensor(blocks, dtype=torch.int32)


def _blocks(model: Llama) -> list[Block]:
    return [block for block in model.layers if isinstance(block, Block)]
