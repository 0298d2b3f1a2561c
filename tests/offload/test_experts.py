"""Models whose experts are off the device give the numbers and tokens of models whose experts are not, bit for bit."""

import gc
import os
import threading
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import puna
from puna.engine.engine import Engine, score
from puna.engine.request import Request, Sampling
from puna.errors import ConfigError, WeightsError
from puna.kernels import native
from puna.kernels.formats import Small
from puna.kernels.quantized import routed_experts
from puna.model.transformer import Llama
from puna.offload.cache import ExpertCache
from puna.offload.experts import OffloadedExperts, likely, put_off
from puna.offload.record import Pair
from puna.offload.store import ReadExpert
from puna.quant import fp8, int4, int8
from puna.quant.swap import packed
from puna.weights import checkpoint, hub
from tests.offload.conftest import SOURCES, layers_of, make_store, reader
from tests.reference.tiny import PATCH_ID, TILE_TOKENS, random_ids, read_whole

FORMS: dict[str, Callable[[Tensor], Tensor | Small]] = {
    "float32": lambda weight: weight,
    "bfloat16": lambda weight: weight,
    "int4": int4.quantize,
    "int8": int8.quantize,
    "fp8": fp8.quantize,
    "packed bfloat16": lambda weight: packed(weight if weight.dim() == 3 else weight[None]),
    "packed int4": lambda weight: packed(int4.quantize(weight if weight.dim() == 3 else weight[None])),
}


class Resident(nn.Module):
    """The plain twin for small numbers: all experts of a layer in memory."""

    def __init__(self, gate_up: Small, down: Small) -> None:
        super().__init__()
        self.gate_up, self.down = gate_up, down

    def forward(self, x: Tensor, scores: Tensor, experts: Tensor) -> Tensor:
        return routed_experts(x, scores, experts, self.gate_up, self.down)


def in_form(model: Llama, form: str) -> tuple[Llama, ReadExpert]:
    """Returns the model with resident experts of this form, and what reads the same experts one at a time."""
    model = deepcopy(model).to(torch.float32 if form == "float32" else torch.bfloat16)
    read = reader(deepcopy(model))
    if form.startswith("packed") and not native.available():
        pytest.skip("no kernels of ours on this processor")
    if form in ("float32", "bfloat16"):
        return model, read
    for layer in layers_of(model).layers:
        moe = model.layers[layer].moe
        moe.experts = Resident(FORMS[form](moe.experts.gate_up), FORMS[form](moe.experts.down))
    return model, lambda key: Pair(*(FORMS[form](weight) for weight in read(key)))


def offloaded(
    model: Llama, read: ReadExpert, folder: Path, source: str = "disk", n_places: int = 3, *, foresee: bool = True
) -> Llama:
    store = make_store(source, folder, layers_of(model), read)
    twin = deepcopy(model)
    put_off(twin, ExpertCache(store, n_places * store.record.n_bytes), foresee=foresee)
    return twin


def cache_of(model: Llama) -> ExpertCache:
    (cache,) = {module.cache for module in model.modules() if isinstance(module, OffloadedExperts)}
    return cache


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n_places", [1, 5, 32])
def test_logits_are_the_same_bits_with_any_number_of_cached_experts(
    model: Llama, form: str, n_places: int, tmp_path: Path
) -> None:
    resident, read = in_form(model, form)
    ours = offloaded(resident, read, tmp_path, n_places=n_places)
    for ids in (random_ids(1, 0), random_ids(7, 1), random_ids(150, 2), random_ids(3, 3)):
        assert torch.equal(score(ours, ids), score(resident, ids))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("foresee", [True, False])
@pytest.mark.parametrize("form", ["bfloat16", "int4", "packed int4"])
def test_tokens_are_the_same_in_batches_with_pictures(
    model: Llama, form: str, source: str, foresee: bool, tmp_path: Path
) -> None:
    resident, read = in_form(model, form)
    ours = offloaded(resident, read, tmp_path, source, foresee=foresee)
    tiles = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16) * 2 - 1
    requests = [
        Request(ids=random_ids(20, 1), sampling=Sampling(temperature=0, max_new_tokens=12, n_logprobs=3)),
        Request(ids=random_ids(3, 2), sampling=Sampling(temperature=1, seed=5, max_new_tokens=20), n=2),
        Request(
            ids=[*random_ids(2, 3), *[PATCH_ID] * TILE_TOKENS, *random_ids(4, 4)],
            tiles=tiles,
            sampling=Sampling(temperature=1, seed=6, max_new_tokens=9),
        ),
    ]
    assert Engine(ours).run(requests) == Engine(resident).run(requests)


def test_threads_that_share_a_model_get_their_own_numbers(model: Llama, tmp_path: Path) -> None:
    ours = offloaded(model, reader(model), tmp_path, n_places=2)
    texts = [random_ids(5 + seed, seed) for seed in range(4)]
    expected, found = [score(model, ids) for ids in texts], {}

    def work(number: int) -> None:
        found[number] = [score(ours, texts[number]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(torch.equal(logits, expected[number]) for number in range(len(texts)) for logits in found[number])


def test_no_expert_is_held_by_the_model_itself(model: Llama, tmp_path: Path) -> None:
    ours = offloaded(model, reader(model), tmp_path)
    assert not any(".experts." in name for name, _ in ours.named_parameters())
    assert ours.state_dict().keys() == {name for name in model.state_dict() if ".experts." not in name}


def test_nothing_is_trained_through_experts_that_are_off_the_device(model: Llama, tmp_path: Path) -> None:
    ours = offloaded(model, reader(model), tmp_path)
    ours.embedding.weight.requires_grad_()
    with pytest.raises(ConfigError, match="experts off the device only answer"):
        read_whole(ours, random_ids(3, 0))


def test_a_file_that_is_cut_off_while_it_is_used_is_named(model: Llama, tmp_path: Path) -> None:
    ours = offloaded(model, reader(model), tmp_path, n_places=1)
    last = max(layers_of(model).layers)
    os.truncate(tmp_path / f"layer-{last:03d}.experts", 4096)
    for _ in range(2):
        with pytest.raises(WeightsError, match=rf"expert \d of layer {last} in .*: the file ends before this expert"):
            score(ours, random_ids(5, 0))


def test_the_fetching_thread_ends_with_the_model(model: Llama, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    ours = offloaded(model, reader(model), tmp_path)
    (thread,) = set(threading.enumerate()) - before
    score(ours, random_ids(5, 0))
    del ours
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()


def test_foresight_is_the_next_router_on_the_present_stream(model: Llama, tmp_path: Path) -> None:
    """Held against the long way: the next layer's norm and router on the residual stream itself."""
    with torch.no_grad():
        for block in model.layers:  # gains that differ
            block.feed_forward_norm.weight.copy_(torch.rand(block.feed_forward_norm.weight.shape) + 0.5)
    ours = offloaded(model, reader(model), tmp_path)
    first, second, *_ = layers_of(model).layers
    stream: list[Tensor] = []
    ours.layers[first].feed_forward_norm.register_forward_pre_hook(lambda _, inputs: stream.append(inputs[0]))
    read_whole(ours, random_ids(30, 0))
    block, next_block = ours.layers[first], ours.layers[second]
    h = block.feed_forward_norm(stream[0])
    short = nn.functional.linear(h, block.moe.experts.foresight)
    torch.testing.assert_close(short, next_block.moe.router(next_block.feed_forward_norm(stream[0])))


def test_likely_experts_are_ordered_by_how_many_tokens_want_them() -> None:
    x = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0, 0, 2.0], [0, 0, 3.0], [1.0, 0, 0]])
    assert likely(x, torch.eye(3), 1) == [2, 0]
    assert sorted(likely(x, torch.eye(3), 3)) == [0, 1, 2]
    assert likely(x[:0], torch.eye(3), 1) == []
    assert likely(torch.tensor([[1.0, 3.0, 2.0]]), torch.eye(3), 2) == [1, 2]


def test_foresight_finds_most_experts_of_the_model_that_ships(tmp_path: Path) -> None:
    """On stories it is 67 % (docs/decisions/010); chance is 13 %, and the most popular expert of each layer 25 %."""
    tokenizer, model = puna.load("cria").tokenizer, checkpoint.load(hub.resolve("cria"))
    ours = offloaded(model, reader(model), tmp_path, n_places=63)
    text = "Once upon a time there was a little girl who lived near the forest with her grandmother and a goat."
    ids = [tokenizer.bos_id, *tokenizer.encode(text)]
    output = Engine(ours).run([Request(ids=ids, sampling=Sampling(temperature=0, max_new_tokens=60))])
    assert output == Engine(model).run([Request(ids=ids, sampling=Sampling(temperature=0, max_new_tokens=60))])
    traffic = cache_of(ours).traffic
    assert traffic.n_foreseen / traffic.n_guessed > 0.5
