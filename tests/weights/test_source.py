"""Opening checkpoints: every published form of them is found, and everything wrong with one is named in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from puna.errors import ConfigError, PunaError, WeightsError
from puna.kernels.formats import expert_of
from puna.weights import safetensors
from puna.weights.checkpoint import load, save_meta
from puna.weights.source import open_config, open_source, resample_positions
from puna.weights.stored import Staging, pieces, read_whole
from tests.reference.checkpoints import KINDS, edit_json, make_checkpoint
from tests.reference.meta import reference_module

State = dict[str, Tensor]
GATE_UP = "model.layers.1.feed_forward.experts.gate_up_proj"
DOWN = "model.layers.1.feed_forward.experts.down_proj"
QUERY = "model.layers.0.self_attn.q_proj.weight"


def read_state(path: Path) -> State:
    return {s.key: read_whole(s) for file in path.glob("*.safetensors") for s in safetensors.index(file)}


def write_state(path: Path, state: State) -> None:
    """Writes the one weight file of a directory anew, in any dtypes."""
    entries = [safetensors.Entry(key, tensor.dtype, tuple(tensor.shape)) for key, tensor in state.items()]
    writer = safetensors.Writer(path / "model.safetensors", entries)
    for entry in entries:
        tensor = state[entry.key]
        data = pieces(tensor if tensor.dim() else tensor[None], Staging(), in_first=False) if tensor.numel() else ()
        writer.put(entry, data)
    writer.close()


@pytest.fixture(scope="session")
def maverick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-only checkpoint in one file."""
    return make_checkpoint("maverick", tmp_path_factory.mktemp("maverick")).path


@pytest.fixture
def copy(maverick: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(maverick, tmp_path / "copy"))


def rewrite(path: Path, edit: Callable[[State], None]) -> Path:
    state = read_state(path)
    edit(state)
    write_state(path, state)
    return path


def parameters(path: Path, dtype: torch.dtype | None = None) -> State:
    return {name: parameter.detach() for name, parameter in load(path, dtype=dtype).named_parameters()}


def assert_same(ours: State, theirs: State) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


def assert_experts_come_alone(path: Path) -> None:
    """One expert read by itself is the one that lies in the whole parameter, bit for bit."""
    source = open_source(path)
    for name in (name for name in source.pieces if ".experts." in name):
        whole, stored = source.read(name, Staging()), source.read_stored(name, Staging())
        for expert, matrix in enumerate(whole):
            alone = source.of_expert(name, expert)
            assert torch.equal(alone.read(name, Staging()), matrix), (name, expert)
            ours, theirs = alone.read_stored(name, Staging()), expert_of(stored, expert)
            assert type(ours) is type(theirs)
            assert all(torch.equal(a.float(), b.float()) for a, b in zip(ours, theirs, strict=True)), (name, expert)


# All published forms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spell",
    [
        lambda key: f"language_model.{key}",
        lambda key: f"model.language_model.{key.removeprefix('model.')}" if key.startswith("model.") else key,
    ],
    ids=["nested", "newer-nesting"],
)
def test_every_nesting_of_keys_gives_the_same_model(spell: Callable[[str], str], maverick: Path, copy: Path) -> None:
    write_state(copy, {spell(key): tensor for key, tensor in read_state(maverick).items()})
    assert_same(parameters(copy), parameters(maverick))
    assert_experts_come_alone(copy)


def unfuse(state: State, layers: tuple[int, ...] = (1, 3)) -> None:
    """Replaces fused experts by one [out, in] matrix per expert and projection, as llm-compressor writes them."""
    for layer in layers:
        experts = f"model.layers.{layer}.feed_forward.experts"
        gate_up, down = state.pop(f"{experts}.gate_up_proj"), state.pop(f"{experts}.down_proj")
        for e in range(len(down)):
            gate, up = gate_up[e].T.chunk(2)
            for name, matrix in (("gate", gate), ("up", up), ("down", down[e].T)):
                state[f"{experts}.{e}.{name}_proj.weight"] = matrix.contiguous()


def test_experts_kept_apart_give_the_same_model(maverick: Path, copy: Path) -> None:
    assert_same(parameters(rewrite(copy, unfuse)), parameters(maverick))
    assert_experts_come_alone(copy)


def test_activation_scales_and_rotation_tables_are_left_out_on_purpose(maverick: Path, copy: Path) -> None:
    def add(state: State) -> None:
        unfuse(state)
        state["model.layers.1.feed_forward.experts.0.gate_proj.input_scale"] = torch.tensor(1.0)
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        state["model.layers.0.self_attn.k_proj.k_scale"] = torch.tensor(1.0)

    assert_same(parameters(rewrite(copy, add)), parameters(maverick))


def quantised(matrix: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """fp8 numbers and the float32 scale that fills e4m3's range of +-448, one per index that is not in `axes`."""
    scale = matrix.float().abs().amax(axes, keepdim=True) / 448
    return (matrix.float() / scale).to(torch.float8_e4m3fn), scale


def compressed_tensors(state: State) -> None:
    """The published Maverick-FP8: experts apart, one scale per output row."""
    unfuse(state)
    for key in [key for key in state if ".experts." in key]:
        state[key], state[f"{key}_scale"] = quantised(state[key], (1,))


def per_tensor(state: State) -> None:
    """Experts apart, one scale per matrix; static scales of activations beside them."""
    unfuse(state)
    for key in [key for key in state if ".experts." in key]:
        state[key], scale = quantised(state[key], (0, 1))
        state[f"{key}_scale"] = scale.reshape(())
        state[key.replace("weight", "input_scale")] = torch.tensor(1.0)


def fbgemm(state: State) -> None:
    """transformers' fbgemm_fp8: fused [in, out], scales of gate_up in a row, of down in a column; linear maps too."""
    for key in [key for key in state if "experts." in key]:
        state[key], scale = quantised(state[key], (1,))
        state[f"{key}_scale"] = scale if "gate_up" in key else scale.transpose(1, 2).contiguous()
    state[QUERY], state[f"{QUERY}_scale"] = quantised(state[QUERY], (1,))


def modelopt(state: State) -> None:
    """ModelOpt: fused, one scale per fused tensor."""
    for key in [key for key in state if "experts." in key]:
        state[key], scale = quantised(state[key], (0, 1, 2))
        state[f"{key}_weight_scale"] = scale.reshape(1)
        state[f"{key}_input_scale"] = torch.tensor(1.0)


def scales_in_bfloat16(state: State) -> None:
    compressed_tensors(state)
    for key in [key for key in state if key.endswith("_scale")]:
        state[key] = state[key].bfloat16()


@pytest.mark.parametrize("form", [compressed_tensors, per_tensor, fbgemm, modelopt, scales_in_bfloat16])
def test_fp8_weights_are_dequantised_within_rounding(form: Callable[[State], None], maverick: Path, copy: Path) -> None:
    exact, ours = parameters(maverick), parameters(rewrite(copy, form))
    changed = set()
    for name, tensor in ours.items():
        assert tensor.dtype == torch.bfloat16
        error, size = (tensor.float() - exact[name].float()).abs(), exact[name].float().abs()
        if error.any():
            changed.add(name.removeprefix("layers.").partition(".")[2])
        # e4m3 has 3 bits of mantissa (half a step: 2^-4) down to 2^-6, below it steps of 2^-9 of the scale, which is at
        # most the largest number / 448; bfloat16 adds 2^-9, a bfloat16 scale 2^-8 more.
        assert (error <= size * (2**-4 + 2**-7) + size.max() / 448 * 2**-10).all(), name
    assert changed == {"moe.experts.gate_up", "moe.experts.down"} | (
        {"attention.query.weight"} if form is fbgemm else set()
    )
    assert_experts_come_alone(copy)


def test_fp8_numbers_times_scales_are_exact_in_float32(maverick: Path, copy: Path) -> None:
    state = read_state(rewrite(copy, compressed_tensors))
    ours = parameters(copy, torch.float32)
    for e in range(8):
        key = f"model.layers.1.feed_forward.experts.{e}.up_proj.weight"
        assert torch.equal(ours["layers.1.moe.experts.gate_up"][e, 32:], state[key].float() * state[f"{key}_scale"])


def test_fp8_of_metas_format_is_dequantised(maverick: Path, tmp_path: Path) -> None:
    """Two shards, experts fp8 per output row with fp8_scales_N.pt beside, as Meta's quantising script writes them."""
    model = load(maverick)
    save_meta(model, model.config, tmp_path / "meta", shards=2)
    for shard in (0, 1):
        file, scales = tmp_path / "meta" / f"consolidated.{shard:02d}.pth", {}
        state = torch.load(file, weights_only=True)
        for name, module in (("moe_w_in_eD_F", "w1"), ("moe_w_swiglu_eD_F", "w3"), ("moe_w_out_eF_D", "w2")):
            key = f"layers.1.feed_forward.experts.{name}"
            numbers, scale = quantised(state[key].unflatten(0, (8, -1)).transpose(1, 2), (2,))  # E out in
            state[key] = numbers.transpose(1, 2).reshape(state[key].shape).contiguous()
            scales[f"layers.1.feed_forward.experts.{module}"] = scale.squeeze(2)
        torch.save(state, file)
        torch.save(scales, tmp_path / "meta" / f"fp8_scales_{shard}.pt")
    ours = parameters(tmp_path / "meta")
    for name, parameter in model.named_parameters():
        error = (ours[name].float() - parameter.float()).abs()
        assert error.max() <= parameter.abs().max() * (2**-4 + 2**-8), name
        assert error.any() == name.startswith("layers.1.moe.experts"), name
    assert_experts_come_alone(tmp_path / "meta")


def test_metas_other_spellings_give_the_same_model(maverick: Path, tmp_path: Path) -> None:
    """Names of Meta's modules after loading; experts unmerged, as Meta's own resharding leaves them."""
    model = load(maverick)
    save_meta(model, model.config, tmp_path)
    file = tmp_path / "consolidated.00.pth"
    state = torch.load(file, weights_only=True)
    for layer in range(4):
        at = f"layers.{layer}."
        q, k, v = state.pop(f"{at}attention.wqkv.weight").chunk(3)
        state |= {f"{at}attention.wq.weight": q.clone(), f"{at}attention.wk.weight": k.clone()}
        state |= {f"{at}attention.wv.weight": v.clone()}
        state[f"{at}attention_norm.weight"] = state.pop(f"{at}attention.wqkv.layer_norm_weight")
    for layer in (0, 2):
        at = f"layers.{layer}.feed_forward."
        gate, up = state.pop(f"{at}mlp.fc1_weight").chunk(2)
        state |= {f"{at}w1.weight": gate.clone(), f"{at}w3.weight": up.clone()}
        state[f"{at}w2.weight"] = state.pop(f"{at}mlp.fc2_weight")
        state[f"layers.{layer}.ffn_norm.weight"] = state.pop(f"{at}mlp.layer_norm_weight")
    for name, module in (("moe_w_in_eD_F", "w1"), ("moe_w_swiglu_eD_F", "w3"), ("moe_w_out_eF_D", "w2")):
        at = "layers.1.feed_forward.experts."
        state[at + module] = state.pop(at + name).unflatten(0, (8, -1))
        at = "layers.3.feed_forward.experts."
        state[at + name] = state[at + name].unflatten(0, (8, -1))
    state["rope.freqs"] = torch.ones(4)
    state["layers.1.feed_forward.running_gate_stats_3E"] = torch.ones(3, 8)
    torch.save(state, file)
    assert_same(parameters(tmp_path), parameters(maverick))


@pytest.mark.filterwarnings("ignore:Default grid_sample")  # Meta's code leaves the corner rule to torch's default
@torch.no_grad()
def test_raw_position_table_is_resampled_as_metas_load_hook_does(tmp_path: Path) -> None:
    model = load(make_checkpoint("guard", tmp_path / "hf", vision=True, dtype=torch.float32).path)
    save_meta(model, model.config, tmp_path / "meta")
    raw = torch.randn(37, 64)
    file, key = tmp_path / "meta" / "consolidated.00.pth", "vision_embeddings.vision_encoder.positional_embedding"
    torch.save(torch.load(file, weights_only=True) | {key: raw}, file)
    ours = parameters(tmp_path / "meta")["vision.positions"]
    assert torch.equal(ours, resample_positions(raw))
    encoder = reference_module("vision.encoder").VisionEncoder
    packed = encoder.__new__(encoder)  # the hook needs these three and no weights
    torch.nn.Module.__init__(packed)
    packed.grid_size = (6, 6)
    packed.positional_embedding_vlm = torch.nn.Parameter(torch.empty(37, 64))
    packed.packed_img_idx = packed_positions(6)
    hooked = packed.load_hook({"positional_embedding": raw}, "", {}, return_state_dict=True)
    assert torch.allclose(ours, hooked["positional_embedding_vlm"], atol=1e-6)  # order of the four summands


def packed_positions(side: int) -> Tensor:
    """Meta's table of patches: y, x, height, width and index in columns 1, 2, 4, 5, 6; the class token has index -2."""
    index = torch.cat([torch.arange(side * side), torch.tensor([-2])])
    table = torch.zeros(1, side * side + 1, 7, dtype=torch.int32)
    table[0, :, 1], table[0, :, 2], table[0, :, 6] = index // side, index % side, index
    table[0, :, 4] = table[0, :, 5] = side
    return table


@pytest.mark.parametrize("layout", ["hf", "meta"])
def test_dense_width_comes_from_the_weights_and_not_from_the_configuration(layout: str, tmp_path: Path) -> None:
    make_checkpoint("guard", tmp_path / "hf")
    model = load(tmp_path / "hf")
    if layout == "meta":
        save_meta(model, model.config, tmp_path / "meta", shards=4)
        edit_json(tmp_path / "meta" / "params.json", lambda p: p.pop("puna") and p.update(multiple_of=16384))
    else:
        edit_json(tmp_path / "hf" / "config.json", lambda c: c.update(intermediate_size_mlp=16384))
    assert open_config(tmp_path / layout).text.dense_width == 48
    assert_same(parameters(tmp_path / layout), dict(model.named_parameters()))


def test_metas_absent_vocabulary_size_comes_from_the_embedding(maverick: Path, tmp_path: Path) -> None:
    model = load(maverick)
    save_meta(model, model.config, tmp_path, shards=2)
    edit_json(tmp_path / "params.json", lambda p: p.pop("puna") and p.update(vocab_size=-1))
    assert open_config(tmp_path).text.vocab_size == 128


def test_most_tiles_of_a_picture_are_found_where_either_release_of_transformers_puts_them(tmp_path: Path) -> None:
    make_checkpoint("guard", tmp_path, vision=True)
    for file, value in (
        ("processor_config.json", {"image_processor": {"max_patches": 5}}),
        ("preprocessor_config.json", {"max_patches": 6}),
    ):
        (tmp_path / file).write_text(json.dumps(value))
        vision = open_config(tmp_path).vision
        assert vision is not None and vision.max_tiles == (5 if file.startswith("processor") else 6)


@pytest.mark.parametrize("kind", KINDS)
def test_configuration_can_be_opened_without_weights(kind: str, tmp_path: Path) -> None:
    config = open_config(make_checkpoint(kind, tmp_path).path)
    (tmp_path / "model.safetensors").unlink()
    assert open_config(tmp_path) == config


# Everything that can be wrong ---------------------------------------------------------------------------------------


def assert_refused(path: Path, *named: str, error: type[PunaError] = WeightsError) -> None:
    with pytest.raises(error) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in named:
        assert part in message, f"{part!r} is not in {message!r}"


@pytest.mark.parametrize("key", [QUERY, GATE_UP, "lm_head.weight", "model.layers.3.post_attention_layernorm.weight"])
def test_missing_key_is_named_with_its_file(key: str, copy: Path) -> None:
    assert_refused(rewrite(copy, lambda s: s.pop(key)), repr(key), "model.safetensors: missing")


def test_missing_expert_among_those_kept_apart_is_named(copy: Path) -> None:
    key = "model.layers.3.feed_forward.experts.5.up_proj.weight"
    assert_refused(rewrite(copy, lambda s: (unfuse(s), s.pop(key))[0]), repr(key), "missing")


@pytest.mark.parametrize(
    "key",
    [
        "model.layers.4.self_attn.q_proj.weight",
        "vision_model.class_embedding",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.1.feed_forward.experts.0.gate_proj.weight_packed",
        f"{QUERY}_scale",  # of a weight that is not fp8
    ],
)
def test_unexpected_key_is_named_with_its_file(key: str, copy: Path) -> None:
    assert_refused(rewrite(copy, lambda s: s.update({key: torch.ones(2)})), repr(key), "model.safetensors: unexpected")


def test_parameter_stored_in_two_forms_is_refused(maverick: Path, copy: Path) -> None:
    fused = read_state(maverick)[GATE_UP]
    assert_refused(rewrite(copy, lambda s: (unfuse(s), s.update({GATE_UP: fused}))[0]), GATE_UP, "twice")


def test_key_in_two_nestings_is_refused(copy: Path) -> None:
    assert_refused(rewrite(copy, lambda s: s.update({f"language_model.{QUERY}": s[QUERY]})), QUERY, "twice")


@pytest.mark.parametrize(
    ("key", "shape"), [(QUERY, (64, 63)), (GATE_UP, (8, 64, 32)), (DOWN, (8, 64, 32)), ("model.norm.weight", (65,))]
)
def test_misshaped_tensor_is_named_with_both_shapes(key: str, shape: tuple[int, ...], copy: Path) -> None:
    path = rewrite(copy, lambda s: s.update({key: torch.ones(shape).bfloat16()}))
    assert_refused(path, repr(key), "model.safetensors", f"shape {list(shape)}", "asks for [")


def test_mixed_dtypes_are_refused_unless_one_is_asked_for(copy: Path) -> None:
    rewrite(copy, lambda s: s.update({QUERY: s[QUERY].float()}))
    assert_refused(copy, repr(QUERY), "model.safetensors: torch.float32", "torch.bfloat16")
    assert {tensor.dtype for tensor in parameters(copy, torch.float16).values()} == {torch.float16}


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e5m2, torch.bool])
def test_dtype_that_is_no_weight_is_refused(dtype: torch.dtype, copy: Path) -> None:
    path = rewrite(copy, lambda s: s.update({QUERY: torch.ones(64, 64).to(dtype)}))
    assert_refused(path, repr(QUERY), f"model.safetensors: {dtype}")


def test_dtype_that_cannot_hold_weights_is_refused(maverick: Path) -> None:
    with pytest.raises(WeightsError, match=r"dtype: torch.int8"):
        load(maverick, dtype=torch.int8)


def test_fp8_without_scale_is_refused(copy: Path) -> None:
    path = rewrite(copy, lambda s: s.update({QUERY: s[QUERY].to(torch.float8_e4m3fn)}))
    assert_refused(path, repr(QUERY), "model.safetensors", f"{QUERY}_scale")


def test_block_wise_scales_are_refused(copy: Path) -> None:
    def blocks(state: State) -> None:
        state[QUERY] = state[QUERY].to(torch.float8_e4m3fn)
        state[f"{QUERY}_scale"] = torch.ones(8, 8)  # as many numbers as rows, and still not one per row

    assert_refused(rewrite(copy, blocks), f"'{QUERY}_scale'", "model.safetensors", "[8, 8]")


@pytest.mark.parametrize("scale", [torch.ones(64).int(), torch.ones(0), torch.ones(63, 1), torch.ones(1, 64, 64)])
def test_scale_that_fits_no_weight_is_refused(scale: Tensor, copy: Path) -> None:
    def scaled(state: State) -> None:
        state[QUERY], state[f"{QUERY}_scale"] = state[QUERY].to(torch.float8_e4m3fn), scale

    with pytest.raises(WeightsError, match=f"'{QUERY}_scale' in .*neither one scale nor one per row"):
        open_source(rewrite(copy, scaled))


def test_truncated_file_is_named(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert_refused(copy, str(file), "truncated")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return make_checkpoint("scout", tmp_path / "sharded", max_shard_size="100KB").path


def test_missing_file_of_an_index_is_named(sharded: Path) -> None:
    file = sorted(sharded.glob("*.safetensors"))[1]
    file.unlink()
    assert_refused(sharded, str(file), "index.json", "missing")


def test_index_that_puts_a_key_into_another_file_is_refused(sharded: Path) -> None:
    files = sorted(file.name for file in sharded.glob("*.safetensors"))
    index = sharded / "model.safetensors.index.json"
    other = next(name for name in files if json.loads(index.read_text())["weight_map"][QUERY] != name)
    edit_json(index, lambda i: i["weight_map"].update({QUERY: other}))
    assert_refused(sharded, repr(QUERY), str(index))


def test_index_with_a_key_that_no_file_has_is_refused(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    edit_json(index, lambda i: i["weight_map"].update({"extra": next(iter(i["weight_map"].values()))}))
    assert_refused(sharded, "'extra'", str(index), "is missing in its file")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", 3])
def test_index_cannot_point_out_of_its_directory(name: object, sharded: Path) -> None:
    edit_json(sharded / "model.safetensors.index.json", lambda i: i["weight_map"].update({QUERY: name}))
    assert_refused(sharded, repr(QUERY), "index.json", repr(name))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}', "\x00"])
def test_broken_index_is_named(text: str, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    assert_refused(sharded, "index.json")


def test_files_without_their_index_are_refused(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    assert_refused(sharded, str(sharded), "index")


def test_directory_without_weights_or_configuration_is_named(maverick: Path, copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert_refused(copy, str(copy), "no model.safetensors")
    assert_refused(tmp_path / "nowhere", "nowhere", "config.json")


def test_broken_configuration_is_named_with_its_file(copy: Path) -> None:
    edit_json(copy / "config.json", lambda c: c.pop("hidden_size"))
    assert_refused(copy, str(copy / "config.json"), "hidden_size", error=ConfigError)
    (copy / "config.json").write_text("{")
    assert_refused(copy, str(copy / "config.json"), "not JSON")


@pytest.fixture
def meta(maverick: Path, tmp_path: Path) -> Path:
    model = load(maverick)
    save_meta(model, model.config, tmp_path / "meta", shards=4)
    return tmp_path / "meta"


def change_shard(path: Path, edit: Callable[[State], object]) -> Path:
    state = torch.load(path, weights_only=True)
    edit(state)
    torch.save(state, path)
    return path


def test_missing_shard_is_named(meta: Path) -> None:
    (meta / "consolidated.01.pth").unlink()
    assert_refused(meta, str(meta / "consolidated.01.pth"), "missing")


def test_lost_last_shard_is_noticed_by_its_shapes(meta: Path) -> None:
    (meta / "consolidated.03.pth").unlink()
    assert_refused(meta, "consolidated.00.pth", "shards")


def test_key_missing_in_one_shard_is_named_with_that_shard(meta: Path) -> None:
    file = change_shard(meta / "consolidated.02.pth", lambda s: s.pop("layers.0.attention.wo.weight"))
    assert_refused(meta, "'layers.0.attention.wo.weight'", str(file), "missing")


def test_key_unexpected_in_one_shard_is_named_with_that_shard(meta: Path) -> None:
    file = change_shard(meta / "consolidated.02.pth", lambda s: s.update(extra=torch.ones(1)))
    assert_refused(meta, "'extra'", str(file), "unexpected")


def test_tensor_misshaped_in_one_shard_is_named_with_that_shard(meta: Path) -> None:
    key = "layers.1.feed_forward.experts.moe_w_out_eF_D"
    file = change_shard(meta / "consolidated.03.pth", lambda s: s.update({key: s[key][1:].clone()}))
    assert_refused(meta, repr(key), str(file), "in each of 4 shards")


def test_damaged_shard_is_named(meta: Path) -> None:
    file = meta / "consolidated.03.pth"
    file.write_bytes(file.read_bytes()[:5000])
    assert_refused(meta, str(file), "truncated")


def test_packed_int4_of_metas_format_is_refused(meta: Path) -> None:
    torch.save({}, meta / "int4_scales_0.pt")
    assert_refused(meta, str(meta), "int4")


def test_opening_reads_no_numbers_and_knows_their_size(maverick: Path) -> None:
    source = open_source(maverick)
    assert source.dtype == torch.bfloat16
    assert source.n_bytes == sum(tensor.numel() * 2 for tensor in read_state(maverick).values())
