import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor

from puna.adapters.spec import Spec
from puna.config import LlamaConfig
from puna.errors import ConfigError, DeviceError
from puna.kernels.formats import Fp8, Int4, Int8, dequantize, pack
from puna.kernels.low_rank import Factors
from puna.model.mask import Packed
from puna.model.transformer import Llama
from puna.parallel import Layout, Mesh, Share, ShareOfLlama, cuts_of
from puna.presets import CRIA, GUARD4, MAVERICK, SCOUT
from puna.weights import checkpoint, names
from tests.adapters.toys import EVERYTHING, adapter_for
from tests.reference.ranks import Ranks, started
from tests.reference.shares import ON_FOUR, ON_TWO, SHAPES, maverick, put, share_of, widened
from tests.reference.tiny import PATCH_ID, TILE_TOKENS, random_ids, random_model, read_whole, tiny_config

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # sums in another order, in float32, of logits of size 1


def prompt_with_tiles(n_tiles: int) -> tuple[list[int], Tensor | None]:
    """Ids beyond several borders of chunks, with room for tiles in between."""
    ids = random_ids(10, 1) + [PATCH_ID] * (n_tiles * TILE_TOKENS) + random_ids(17, 2)
    tiles = torch.rand(n_tiles, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return ids, tiles if n_tiles else None


def logits_on_a_rank(config: LlamaConfig, layout: Layout, n_tiles: int) -> Tensor:
    model = share_of(config, layout)
    ids, tiles = prompt_with_tiles(n_tiles)
    features = None if tiles is None else model.embed_tiles(tiles)
    store = Packed.single(model.share.config.text, len(ids))
    return model(torch.tensor(ids), torch.arange(len(ids)), store, features)


def check_equal_logits(ranks: Ranks, config: LlamaConfig, layout: Layout, n_tiles: int) -> None:
    whole = random_model(config)
    ids, tiles = prompt_with_tiles(n_tiles)
    expected = read_whole(whole, ids, None if tiles is None else whole.embed_tiles(tiles))
    first, *others = ranks.run(logits_on_a_rank, config, layout, n_tiles)
    torch.testing.assert_close(first, expected, **TOLERANCE)
    assert all(torch.equal(first, other) for other in others), "ranks must agree to the last bit"


@pytest.mark.parametrize("layout", ON_TWO, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_tiles", [0, 1, 3])
def test_logits_of_two_ranks_are_those_of_one(two_ranks: Ranks, shape: str, layout: Layout, n_tiles: int) -> None:
    check_equal_logits(two_ranks, SHAPES[shape], layout, n_tiles)


@pytest.mark.parametrize("layout", ON_FOUR, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_of_four_ranks_are_those_of_one(four_ranks: Ranks, shape: str, layout: Layout) -> None:
    check_equal_logits(four_ranks, SHAPES[shape], layout, n_tiles=3)


@pytest.mark.parametrize("layout", ON_TWO + ON_FOUR, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_of_all_ranks_make_the_whole_again(shape: str, layout: Layout) -> None:
    config = SHAPES[shape]
    shares = [Share(config, layout, rank) for rank in range(layout.world)]
    for name, whole in random_model(config).named_parameters():
        holders = [share for share in shares if share.own_name(name) is not None]
        joined = torch.full_like(whole, torch.nan)
        for share in holders:
            share.paste(name, joined, share.cut(name, whole.detach()))
        assert torch.equal(joined, whole), name


def test_share_of_a_configuration_has_the_shapes_of_its_parts() -> None:
    layout = Layout(tensor=2, expert=2)
    share = Share(maverick(), layout, 3)
    cut = {share.own_name(name): share.cut(name, p).shape for name, p in random_model(maverick()).named_parameters()}
    with torch.device("meta"):
        model = ShareOfLlama(share, mesh=None)  # type: ignore[arg-type]
    assert {name: p.shape for name, p in model.named_parameters()} == cut
    assert cut["layers.1.moe.experts.gate_up"] == (4, 24, 32)
    assert cut["layers.0.attention.key.weight"] == (8, 32), "two ranks keep each of two key heads"


def test_stages_keep_the_kinds_that_their_layers_have_in_the_model() -> None:
    kinds = []
    for rank in range(4):
        share = Share(MAVERICK, Layout(pipeline=4), rank)
        text = share.config.text
        kinds += [(text.chunk_len_of(layer), text.is_moe(layer)) for layer in range(text.n_layers)]
    assert kinds == [(MAVERICK.text.chunk_len_of(layer), MAVERICK.text.is_moe(layer)) for layer in range(48)]


def test_stages_differ_by_a_layer_at_most() -> None:
    held = [Share(SCOUT, Layout(pipeline=5), rank).layers for rank in range(5)]
    assert [layer for layers in held for layer in layers] == list(range(48))
    assert {len(layers) for layers in held} == {9, 10}


def test_eight_ranks_hold_an_eighth_of_what_is_cut() -> None:
    with torch.device("meta"):
        whole = Llama(SCOUT)
        share = ShareOfLlama(Share(SCOUT, Layout(tensor=2, expert=4), 5), mesh=None)  # type: ignore[arg-type]
    kept_whole = sum(p.numel() for name, p in whole.named_parameters() if not cuts_of(name))
    n_params = sum(p.numel() for p in whole.parameters())
    assert sum(p.numel() for p in share.parameters()) == kept_whole + (n_params - kept_whole) // 8
    assert kept_whole < n_params / 100, "what every rank keeps, the vision tower above all, is less than a hundredth"


def test_cuts_go_along_the_axes_of_metas_shards() -> None:
    with torch.device("meta"):
        parameters = dict(Llama(MAVERICK).named_parameters())
    for row in names.rows(MAVERICK):
        if row.ours.startswith(("vision.", "projector.")):
            continue  # Meta cuts the tower too; here each rank has it whole
        axes = {cut.axis for cut in cuts_of(row.ours)} - {-3}
        assert axes == (set() if row.axis is None else {row.axis}), row.ours
        assert row.ours in parameters


@pytest.mark.parametrize(
    "name", ["layers.1.moe.experts.gate_up", "layers.1.moe.experts.down", "layers.0.mlp.down.weight"]
)
def test_part_of_small_numbers_means_the_part_of_the_numbers(name: str) -> None:
    wide = widened(maverick())
    with torch.device("meta"):
        shape = dict(Llama(wide).named_parameters())[name].shape
    random = torch.Generator().manual_seed(3)
    whole = torch.randn(shape, generator=random)
    groups = whole.unflatten(-1, (-1, 32)).abs().amax(-1) / 8
    codes = (whole.unflatten(-1, (-1, 32)) / groups.to(torch.bfloat16)[..., None]).round().clamp(-8, 7)
    rows = whole.abs().amax(-1, keepdim=True)
    for small in (
        Int4(pack(codes.flatten(-2)), groups.to(torch.bfloat16)),
        Int8((whole / rows * 127).round().to(torch.int8), rows / 127),
        Fp8((whole / rows).to(torch.float8_e4m3fn), rows),
    ):
        for rank in range(4):
            share = Share(wide, Layout(tensor=2, expert=2), rank)
            part = share.cut_small(name, small)
            assert torch.equal(dequantize(part, torch.float32), share.cut(name, dequantize(small, torch.float32)))


def test_cut_through_a_group_with_one_scale_is_refused() -> None:
    small = Int4(torch.zeros(32, 24, dtype=torch.uint8), torch.ones(32, 1, dtype=torch.bfloat16))
    with pytest.raises(ConfigError, match="groups of 32"):
        Share(maverick(), Layout(tensor=2), 0).cut_small("layers.0.mlp.down.weight", small)


@pytest.mark.parametrize(
    ("layout", "config", "message"),
    [
        (Layout(tensor=3), SCOUT, "tensor: 3 does not divide the 40 of n_heads; use one of 1, 2, 4, 5, 8"),
        (Layout(tensor=3), CRIA, "tensor: 3 neither divides the 2 n_kv_heads"),
        (Layout(tensor=5), SCOUT, "tensor: 5 does not divide the 202048 of vocab_size"),
        (
            Layout(expert=4),
            replace(tiny_config(), text=replace(tiny_config().text, n_experts=6)),
            "expert: 4 does not divide the 6 of n_experts",
        ),
        (Layout(tensor=4), replace(tiny_config(), text=replace(tiny_config().text, dense_width=50)), "dense_width"),
        (Layout(pipeline=9), CRIA, "pipeline: 9 exceeds the 8 n_layers"),
    ],
)
def test_division_that_leaves_a_rest_names_field_value_and_remedy(
    layout: Layout, config: LlamaConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Share(config, layout, 0)


@pytest.mark.parametrize("config", [SCOUT, MAVERICK, GUARD4], ids=["scout", "maverick", "guard4"])
@pytest.mark.parametrize(
    "layout", [Layout(tensor=8), Layout(tensor=4, pipeline=12), Layout(tensor=2, pipeline=3)], ids=str
)
def test_released_models_can_be_divided(config: LlamaConfig, layout: Layout) -> None:
    layout.check(config)


def test_layout_gives_tensor_the_ranks_that_are_left() -> None:
    assert Layout.of(8) == Layout(tensor=8)
    assert Layout.of(8, expert=4) == Layout(tensor=2, expert=4)
    assert Layout.of(8, pipeline=2) == Layout(tensor=4, pipeline=2)
    with pytest.raises(ConfigError, match="is 3, but 4 ranks run"):
        Layout.of(4, pipeline=3)
    with pytest.raises(ConfigError, match="expert: 0 must be at least 1"):
        Layout.of(4, expert=0)


@pytest.mark.parametrize("layout", [Layout(tensor=2), Layout(expert=2), Layout(pipeline=2)], ids=str)
@pytest.mark.parametrize("shards", [None, 2], ids=["hf", "meta"])
def test_files_fill_a_share_with_its_parts(tmp_path: Path, layout: Layout, shards: int | None) -> None:
    whole, folder = random_model(maverick()), tmp_path / "model"
    if shards is None:
        checkpoint.save_hf(whole, maverick(), folder)
    else:
        checkpoint.save_meta(whole, maverick(), folder, shards)
    config = checkpoint.open_config(folder)
    for rank in range(layout.world):
        share = Share(config, layout, rank)
        with torch.device("meta"):
            empty = ShareOfLlama(share, mesh=None)  # type: ignore[arg-type]
        model = checkpoint.load(folder, model=empty, share=share, place=put)
        loaded = dict(model.named_parameters())
        for name, parameter in whole.named_parameters():
            if own := share.own_name(name):
                assert torch.equal(loaded.pop(own), share.cut(name, parameter.detach())), name
        assert not loaded


def message_of(length: int) -> list[int]:
    mesh = Mesh(Layout(tensor=2))
    message = [n * 2**40 for n in range(length)]
    if mesh.is_leader:
        mesh.say(message)
        return message
    return mesh.hear()


@pytest.mark.parametrize("length", [0, 1, 1022, 1023, 1024, 5000])
def test_messages_of_every_length_arrive(two_ranks: Ranks, length: int) -> None:
    said, heard = two_ranks.run(message_of, length)
    assert said == heard


def last_word(dying: int) -> str:
    """One rank dies. The other waits for it, rank 0 within a step, rank 1 for something to do."""
    mesh = Mesh(Layout(tensor=2), patience=timedelta(hours=1))
    if mesh.rank == dying:
        os._exit(1)
    try:
        if mesh.is_leader:
            mesh.sum(torch.ones(3))
        else:
            mesh.hear()
    except DeviceError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(("dying", "doing"), [(1, "adding up"), (0, "listening to rank 0")])
def test_death_of_a_rank_is_an_error_and_no_endless_wait(tmp_path: Path, dying: int, doing: str) -> None:
    with started(2, tmp_path) as ranks:
        outcomes = ranks.outcomes(last_word, dying)
    assert outcomes[dying].failure == "died"
    assert f"lost another rank while {doing}" in outcomes[1 - dying].result


@pytest.mark.parametrize("layout", [*ON_TWO, *ON_FOUR])
def test_corrections_of_parts_are_parts_of_corrections(layout: Layout) -> None:
    config = SHAPES["maverick"]
    few = {1: (0, 3, 4), 3: (7,)}
    for spec in (Spec(rank=3, targets=EVERYTHING), Spec(rank=3, targets=frozenset({"experts"}), experts=few)):
        adapter = adapter_for(config, spec)
        for share in (Share(config, layout, rank) for rank in range(layout.world)):
            parts = share.part_of_adapter(adapter)
            for name, factors in adapter.items():
                own_name = share.own_name(name)
                if own_name is not None:
                    n_experts = config.text.n_experts if factors.a.dim() == 3 else None
                    part = parts.get(own_name)
                    wanted = share.cut(name, whole_of(factors, n_experts))
                    got = whole_of(part, len(share.experts) if n_experts else None) if part else wanted * 0
                    torch.testing.assert_close(got, wanted, msg=f"{name} of rank {share.rank}")


def whole_of(factors: Factors, n_experts: int | None) -> Tensor:
    """Returns what factors add to a weight, [out in] or [E out in]."""
    added = factors.b @ factors.a
    if n_experts is None or factors.experts is None:
        return added
    return added.new_zeros(n_experts, *added.shape[1:]).index_copy(0, torch.tensor(factors.experts), added)
