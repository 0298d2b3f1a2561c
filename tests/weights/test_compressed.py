"""Small numbers on disk: compressed-tensors and transformers read what we write, and we keep what others wrote."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from puna.errors import ConfigError, WeightsError
from puna.kernels.formats import Fp8, Int4, Int8, Small, dequantize, expert_of
from puna.model.mask import Packed
from puna.weights import safetensors
from puna.weights.checkpoint import convert, load
from puna.weights.compressed import save_compressed
from puna.weights.source import open_source
from puna.weights.stored import Staging, read_whole
from tests.reference.checkpoints import KINDS, edit_json, make_checkpoint

FORMATS: tuple[type[Small], ...] = (Int4, Int8, Fp8)
EVERY = (".attention.", ".moe.experts.", ".moe.shared.", ".mlp.", "head.")


def simple(kind: type[Small]) -> Callable[[str, Tensor | Small], Small]:
    """Makes parameters small by the plainest rule: what the layout must carry, not how well it was chosen."""

    def shrink(name: str, weight: Tensor | Small) -> Small:
        w = dequantize(weight, torch.float32)
        if kind is Int4:
            scales = (w.view(*w.shape[:-1], -1, 32).abs().amax(-1) / 7).bfloat16()
            codes = (w / scales.float().repeat_interleave(32, -1)).round().clamp(-8, 7).to(torch.uint8) + 8
            return Int4((codes & 15)[..., 0::2] | (codes & 15)[..., 1::2] << 4, scales)
        limit = 127 if kind is Int8 else 448
        scale = (w.abs().amax(-1, keepdim=True) / limit).bfloat16().float()
        codes = (w / scale).clamp(-limit, limit)
        return Int8(codes.round().to(torch.int8), scale) if kind is Int8 else Fp8(codes.to(torch.float8_e4m3fn), scale)

    return shrink


def matrices(name: str, parts: tuple[str, ...] = EVERY) -> bool:
    return any(part in f".{name}" for part in parts) and not name.startswith("vision")


def write(src: Path, dst: Path, kind: type[Small], parts: tuple[str, ...] = EVERY) -> Path:
    save_compressed(src, dst, kind, simple(kind), lambda name, _: matrices(name, parts))
    return dst


def stored(path: Path) -> dict[str, Tensor | Small]:
    source, staging = open_source(path), Staging()
    return {name: source.read_stored(name, staging) for name in source.pieces}


def written_out(path: Path) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in load(path, dtype=torch.float32).named_parameters()}


def tensors_of(path: Path) -> dict[str, Tensor]:
    return {s.key: read_whole(s) for file in sorted(path.glob("*.safetensors")) for s in safetensors.index(file)}


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Applies a change to the tensors of a directory with one file."""
    tensors = tensors_of(path)
    change(tensors)
    entries = [safetensors.Entry(key, t.dtype, tuple(t.shape)) for key, t in tensors.items()]
    writer = safetensors.Writer(path / "model.safetensors", entries)
    for entry in entries:
        writer.put(entry, [memoryview(tensors[entry.key].contiguous().view(torch.uint8).numpy().data)])
    writer.close()


@pytest.fixture(scope="module", params=[(kind, vision) for kind in KINDS for vision in (False, True)], ids=str)
def wide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, vision = request.param
    changes = {"intermediate_size": 64, "intermediate_size_mlp": 96}  # whole groups of 32 everywhere
    return make_checkpoint(kind, tmp_path_factory.mktemp(kind) / "hf", vision=vision, text_changes=changes).path


@pytest.fixture(scope="module")
def scout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {"intermediate_size": 128, "hidden_size": 128}
    return make_checkpoint("scout", tmp_path_factory.mktemp("one") / "hf", text_changes=changes).path


@pytest.mark.parametrize("kind", FORMATS)
def test_what_was_written_comes_back_code_for_code(kind: type[Small], wide: Path, tmp_path: Path) -> None:
    before, after = stored(wide), stored(write(wide, tmp_path / "x", kind))
    assert before.keys() == after.keys()
    for name, weight in after.items():
        old = before[name]
        if not matrices(name):
            assert isinstance(weight, Tensor) and isinstance(old, Tensor) and torch.equal(weight, old), name
            continue
        assert isinstance(weight, kind), name
        for ours, meant in zip(weight, simple(kind)(name, old), strict=True):
            assert torch.equal(ours.float(), meant.float()), name


@pytest.mark.parametrize("kind", FORMATS)
def test_a_dtype_that_is_asked_for_gets_the_numbers_written_out(kind: type[Small], scout: Path, tmp_path: Path) -> None:
    small = stored(write(scout, tmp_path / "x", kind))
    for name, numbers in written_out(tmp_path / "x").items():
        torch.testing.assert_close(numbers, dequantize(small[name], torch.float32), rtol=1e-7, atol=0)
    source, name = open_source(tmp_path / "x"), "layers.1.moe.experts.down"
    assert torch.equal(source.of_expert(name, 2).read(name, Staging()), source.read(name, Staging())[2])
    alone = source.of_expert(name, 2).read_stored(name, Staging())
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(alone, expert_of(small[name], 2), strict=True))


@pytest.mark.parametrize("kind", FORMATS)
def test_small_numbers_become_other_small_numbers_on_disk(kind: type[Small], scout: Path, tmp_path: Path) -> None:
    write(scout, tmp_path / "first", Fp8)
    after = stored(write(tmp_path / "first", tmp_path / "second", kind))
    meant = simple(kind)("head.weight", stored(tmp_path / "first")["head.weight"])
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(after["head.weight"], meant, strict=True))


def test_parts_that_are_left_out_stay_as_they_are_and_are_named(scout: Path, tmp_path: Path) -> None:
    write(scout, tmp_path / "x", Int4, (".moe.experts.", ".moe.shared."))
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    ignored = config["quantization_config"]["ignore"]
    assert {"re:.*self_attn", "re:.*lm_head", "re:.*router"} <= set(ignored)
    assert not any("experts" in pattern for pattern in ignored)
    keys = tensors_of(tmp_path / "x").keys()
    assert {"lm_head.weight", "model.layers.0.self_attn.q_proj.weight"} <= keys
    prefix = "model.layers.0.feed_forward.experts.3.gate_proj.weight"
    assert {f"{prefix}_packed", f"{prefix}_scale", f"{prefix}_shape"} <= keys


def test_a_checkpoint_of_meta_becomes_small_too(scout: Path, tmp_path: Path) -> None:
    convert(scout, tmp_path / "meta", "meta", shards=4)
    direct, around = stored(write(scout, tmp_path / "a", Int4)), stored(write(tmp_path / "meta", tmp_path / "b", Int4))
    for name, weight in direct.items():
        assert all(torch.equal(a, b) for a, b in zip(weight, around[name], strict=True)), name


def test_groups_of_128_as_published_are_repeated_for_groups_of_32(scout: Path, tmp_path: Path) -> None:
    write(scout, tmp_path / "x", Int4)

    def coarser(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if key.endswith("weight_scale")]:
            tensors[key] = tensors[key][:, ::4].contiguous()

    fine = stored(tmp_path / "x")
    rewrite(tmp_path / "x", coarser)
    for name, weight in stored(tmp_path / "x").items():
        if isinstance(weight, Int4):
            old = fine[name]
            assert isinstance(old, Int4) and torch.equal(weight.codes, old.codes)
            assert torch.equal(
                weight.scales, old.scales[..., ::4].repeat_interleave(min(4, old.scales.shape[-1]), dim=-1)
            )


def test_eight_bits_in_words_are_numbers_plus_128(scout: Path, tmp_path: Path) -> None:
    write(scout, tmp_path / "x", Int8)

    def pack(tensors: dict[str, Tensor]) -> None:
        for key in [key for key, tensor in tensors.items() if tensor.dtype == torch.int8]:
            tensors[f"{key}_packed"] = (tensors.pop(key).to(torch.int16) + 128).to(torch.uint8).view(torch.int32)

    plain = stored(tmp_path / "x")
    rewrite(tmp_path / "x", pack)
    for name, weight in stored(tmp_path / "x").items():
        assert all(torch.equal(a, b) for a, b in zip(weight, plain[name], strict=True)), name


def test_fused_fp8_experts_and_scales_of_whole_tensors_are_kept(scout: Path, tmp_path: Path) -> None:
    """FBGEMM's form: experts [E in out] with a scale a column, and one scale for a whole matrix elsewhere."""
    write(scout, tmp_path / "x", Fp8)
    apart = stored(tmp_path / "x")
    (tmp_path / "x" / "model.safetensors").unlink()
    fused = tensors_of(scout)
    wide_down = apart["layers.2.moe.experts.down"]
    assert isinstance(wide_down, Fp8)
    key = "model.layers.2.feed_forward.experts.down_proj"
    fused[key] = wide_down.codes.mT.contiguous()
    fused[f"{key}_scale"] = wide_down.scales.mT.contiguous()
    query = fused["model.layers.0.self_attn.q_proj.weight"].float()
    fused["model.layers.0.self_attn.q_proj.weight"] = (query * 100).to(torch.float8_e4m3fn)
    fused["model.layers.0.self_attn.q_proj.weight_scale"] = torch.tensor([0.01])
    entries = [safetensors.Entry(k, t.dtype, tuple(t.shape)) for k, t in fused.items()]
    writer = safetensors.Writer(tmp_path / "x" / "model.safetensors", entries)
    for entry in entries:
        writer.put(entry, [memoryview(fused[entry.key].contiguous().view(torch.uint8).numpy().data)])
    writer.close()
    found = stored(tmp_path / "x")
    down, one = found["layers.2.moe.experts.down"], found["layers.0.attention.query.weight"]
    assert isinstance(down, Fp8) and isinstance(one, Fp8)
    assert torch.equal(down.codes.float(), wide_down.codes.float()) and torch.equal(down.scales, wide_down.scales)
    assert torch.equal(one.scales, torch.full((query.shape[0], 1), 0.01))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.weight_zero_point": torch.zeros(8, 4).int()}),
            "zero point",
        ),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.weight_g_idx": torch.zeros(64).int()}), "another order"),
        (lambda t: t.pop("model.layers.0.self_attn.q_proj.weight_scale"), "cannot be a weight"),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.weight_scale": torch.ones(64, 3).bfloat16()}),
            "does not fit rows",
        ),
    ],
)
def test_what_is_not_supported_is_named(
    change: Callable[[dict[str, Tensor]], Any], says: str, scout: Path, tmp_path: Path
) -> None:
    write(scout, tmp_path / "x", Int4)
    rewrite(tmp_path / "x", change)
    with pytest.raises(WeightsError, match=says):
        open_source(tmp_path / "x")


def test_parts_outside_the_layout_are_refused(wide: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"embedding.weight: this layout keeps it as it is"):
        save_compressed(wide, tmp_path / "x", Int8, simple(Int8), lambda name, _: name == "embedding.weight")
    assert not (tmp_path / "x").exists()


def _compressors(path: Path) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """compressed-tensors' own way back from the tensors of one module, as config.json describes them."""
    compressors = pytest.importorskip("compressed_tensors.compressors", reason="needs compressed-tensors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    described = json.loads((path / "config.json").read_text())["quantization_config"]
    config = quantization.QuantizationConfig.model_validate(described)
    (scheme,) = config.config_groups.values()
    compressor = compressors.BaseCompressor.get_value_from_registry(config.format)
    return lambda tensors: compressor.decompress(dict(tensors), scheme)["weight"]


@pytest.mark.parametrize("kind", FORMATS)
def test_compressed_tensors_reads_the_numbers_that_we_read(kind: type[Small], scout: Path, tmp_path: Path) -> None:
    write(scout, tmp_path / "x", kind)
    decompress, tensors = _compressors(tmp_path / "x"), tensors_of(tmp_path / "x")
    ours = written_out(tmp_path / "x")
    for module, name in (
        ("model.layers.1.self_attn.k_proj", "layers.1.attention.key.weight"),
        ("model.layers.3.feed_forward.shared_expert.up_proj", "layers.3.moe.shared.up.weight"),
        ("lm_head", "head.weight"),
    ):
        parts = {key.removeprefix(f"{module}."): t for key, t in tensors.items() if key.startswith(f"{module}.")}
        assert torch.equal(decompress(parts), ours[name].bfloat16())  # they multiply in the scales' bfloat16
    for e in range(4):
        module = f"model.layers.2.feed_forward.experts.{e}.down_proj"
        parts = {key.removeprefix(f"{module}."): t for key, t in tensors.items() if key.startswith(f"{module}.")}
        assert torch.equal(decompress(parts), ours["layers.2.moe.experts.down"][e].bfloat16())


@torch.no_grad()  # training's own kernels round elsewhere
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("shape", KINDS)
def test_transformers_loads_what_we_write_and_computes_our_logits(
    shape: str, kind: type[Small], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers (test time only)")
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors")
    changes = {"intermediate_size": 64, "intermediate_size_mlp": 96}
    wide = make_checkpoint(shape, tmp_path / "wide", text_changes=changes).path
    path = write(wide, tmp_path / "small", kind)
    if shape == "guard":  # transformers cannot run without a chunk
        edit_json(path / "config.json", lambda config: config.update(attention_chunk_size=4096))
    written = transformers.CompressedTensorsConfig(dequantize=True)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        path, quantization_config=written, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(report.values()), report
    ids = torch.arange(20)
    expected = theirs(ids[None]).logits[0].float()
    model = load(path, dtype=torch.bfloat16)
    ours = model(ids, ids, Packed.single(model.config.text, len(ids)))
    torch.testing.assert_close(ours, expected, rtol=0, atol=0.04)  # a step of bfloat16 at logits of 4 is 0.016 to 0.03
