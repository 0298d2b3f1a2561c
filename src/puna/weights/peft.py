"""Adapters in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`, read and written.

In: a directory and a configuration. Out: `Factors` by the names of our parameters, and back. Files come from anywhere,
so nothing in them is believed: shapes follow from the model and the configured rank before any number is read, patterns
are names and not run as regular expressions, and what changes the mathematics otherwise (DoRA, biases, saved modules)
is refused by its name.

Maps have a [r in] and b [out r], as ours. Routed experts are `target_parameters`: one matrix for all experts each, a
[E*r X] and b [Y r*E], in which the expert is the slower index of a and the faster one of b. Since 0.19 PEFT takes Llama
4's [E in out] for [E out in], so that X are outputs, Y inputs, and the factors change places; before, X are inputs.
Where one module has both parameters adapted, the inner wrapper, `base_layer`, is gate_up's.
Not here: where adapters are used (`adapters`).
Source: PEFT 0.17 to 0.21, `tuners/lora/layer.py` (ParamWrapper), `tuners/tuners_utils.py` (order of wrappers),
`utils/other.py` (patterns); huggingface/peft #2638.
"""

import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from puna.config import LlamaConfig
from puna.errors import WeightsError
from puna.kernels.low_rank import Factors
from puna.model.count import shapes
from puna.weights import names, safetensors
from puna.weights.checkpoint import new_directory, write_json
from puna.weights.safetensors import Entry
from puna.weights.source import FLOATS, read_json
from puna.weights.stored import Staging, Stored, pieces, read_whole

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
MAX_RANK = 1 << 14
MAX_KEY_LEN = 512

_PREFIX = "base_model.model."
_KEY = re.compile(r"(?P<module>[\w.]+?)(?P<inner>(\.base_layer)*)\.lora_(?P<side>[AB])(\.default)?\.weight")
_PATTERN = re.compile(r"\^?[\w.\\]+")
_STACKS = {"gate_up_proj": "gate_up", "down_proj": "down"}  # in the order in which PEFT wraps them
# What changes the mathematics, and the values with which it does not.
_UNCHANGED: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    **dict.fromkeys(
        (
            "alora_invocation_tokens",
            "arrow_config",
            "fan_in_fan_out",
            "kasa_config",
            "layer_replication",
            "lora_bias",
            "modules_to_save",
            "monteclora_config",
            "trainable_token_indices",
            "use_bdlora",
            "use_dora",
            "use_qalora",
            "velora_config",
        ),
        (None, False, [], {}),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an `adapter_config.json` says of the mathematics."""

    rank: int
    alpha: float
    rank_of: Mapping[str, int]
    alpha_of: Mapping[str, float]
    is_rank_stabilised: bool  # alpha counts 1/sqrt(r) times, not 1/r
    parameters: tuple[str, ...]
    is_turned: bool  # written by a PEFT that takes [E in out] for [E out in], as far as the version says

    def of(self, name: str) -> tuple[int, float]:
        """Returns rank and scale of a module or parameter of this name."""
        rank = next((value for key, value in self.rank_of.items() if _ends(name, key)), self.rank)
        alpha = next((value for key, value in self.alpha_of.items() if _ends(name, key)), self.alpha)
        return rank, alpha / (rank**0.5 if self.is_rank_stabilised else rank)


class _Place(NamedTuple):
    """Where a tensor of a file belongs: the module's name there, how deep its wrapper lies, and which factor it is."""

    module: str
    depth: int
    side: str


class _Pair(NamedTuple):
    """Both factors of one parameter of ours as they lie in the file, and the name that PEFT has for what they adapt."""

    name: str
    target: str
    a: Stored
    b: Stored


def load(directory: Path, config: LlamaConfig) -> dict[str, Factors]:
    """Returns the adapter of a directory that PEFT or `save` wrote, for a model of this configuration.

    Experts whose factors are all zeros are left out. Raises WeightsError, naming file, key and remedy.
    """
    settings = read_settings(directory / CONFIG)
    file = directory / TENSORS
    if not file.is_file():
        raise WeightsError(f"{directory}: has no {TENSORS}; only safetensors are read, so save the adapter as these")
    placed: dict[_Place, Stored] = {}
    for stored in safetensors.index(file):
        place = _placed(stored)
        if place in placed:
            raise WeightsError(f"{stored}: is there twice, under two spellings; the file is damaged")
        placed[place] = stored
    known = shapes(config)
    adapter: dict[str, Factors] = {}
    for pair in _pairs(placed, settings, config, file):
        rank, scale = settings.of(pair.target)
        shape = known[pair.name]
        a, b = (_read(stored) for stored in _checked(pair, shape, rank))
        adapter[pair.name] = Factors(a, b, scale) if len(shape) == 2 else _of_experts(a, b, scale, shape, settings)
    if not adapter:
        raise WeightsError(f"{file}: holds no factors; this is not an adapter, or an empty one")
    return adapter


def save(adapter: Mapping[str, Factors], config: LlamaConfig, directory: Path, *, base: str) -> None:
    """Writes an adapter so that PEFT's `from_pretrained` reads it. `base` names the model that it belongs to.

    Experts without factors get zeros, since PEFT knows no others. `directory` must not exist, or be empty.
    Raises WeightsError for what no file can hold.
    """
    targets = _targets(config)
    if unknown := sorted(adapter.keys() - targets.keys()):
        raise WeightsError(f"{unknown[0]}: PEFT has no place for it, or the configuration has no such parameter")
    ordered = {name: adapter[name] for name in targets if name in adapter}
    tensors = {key: tensor for name in ordered for key, tensor in _written(name, ordered, targets, config)}
    entries = [Entry(key, tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()]
    for entry in entries:
        if entry.dtype not in FLOATS:
            raise WeightsError(f"{entry.key}: {entry.dtype}; save factors in a float dtype, such as {FLOATS[0]}")
    staging = Staging()
    with new_directory(directory) as folder:
        writer = safetensors.Writer(folder / TENSORS, entries)
        for entry in entries:
            writer.put(entry, pieces(tensors[entry.key], staging, in_first=False))
        writer.close()
        write_json(folder / CONFIG, _settings_of(ordered, targets, base))


def read_settings(path: Path) -> Settings:
    """Returns what an `adapter_config.json` says. Raises WeightsError for what is wrong with it or not implemented."""
    if path.is_file() and path.stat().st_size > MAX_CONFIG_BYTES:
        raise WeightsError(f"{path}: {path.stat().st_size} bytes are too many for a configuration; fetch it again")
    found = read_json(path)
    if found.get("peft_type") != "LORA":
        raise WeightsError(f"{path}: peft_type is {found.get('peft_type')!r}; only 'LORA' is implemented")
    for field, fine in _UNCHANGED.items():
        if field in found and found[field] not in fine:
            raise WeightsError(f"{path}: {field} is {found[field]!r}, which is not implemented; merge it with PEFT")
    parameters = found.get("target_parameters") or []
    if not isinstance(parameters, list) or not all(isinstance(each, str) for each in parameters):
        raise WeightsError(f"{path}: target_parameters is no list of names; fetch it again")
    return Settings(
        rank=_rank(path, "r", found.get("r")),
        alpha=_alpha(path, "lora_alpha", found.get("lora_alpha")),
        rank_of={key: _rank(path, f"rank_pattern of {key}", each) for key, each in _patterns(path, found, "rank")},
        alpha_of={key: _alpha(path, f"alpha_pattern of {key}", each) for key, each in _patterns(path, found, "alpha")},
        is_rank_stabilised=found.get("use_rslora") is True,
        parameters=tuple(parameters),
        is_turned=_is_turned(found.get("peft_version")),
    )


# Reading ------------------------------------------------------------------------------------------------------------


def _placed(stored: Stored) -> _Place:
    match = _KEY.fullmatch(stored.key.removeprefix(_PREFIX)) if len(stored.key) < MAX_KEY_LEN else None
    if match is None:
        raise WeightsError(f"{stored}: is no factor of a low-rank adapter; merge what else there is with PEFT")
    if stored.dtype not in FLOATS:
        raise WeightsError(f"{stored}: {stored.dtype}; factors are floats, so save the adapter again")
    return _Place(match["module"], match["inner"].count("."), match["side"])


def _pairs(placed: Mapping[_Place, Stored], settings: Settings, config: LlamaConfig, file: Path) -> Iterator[_Pair]:
    """Yields both factors of each parameter, which the model has."""
    known = {key: name for name, key in _keys(config).items()}
    stacks = {key.rpartition(".")[0] for key in known if not key.endswith(".weight")}
    for module in dict.fromkeys(place.module for place in placed):
        key = names.canonical_hf(f"{module}.weight") or ""
        canonical = key.removesuffix(".weight")
        depths = sorted({place.depth for place in placed if place.module == module})
        if key in known and depths == [0]:
            yield _Pair(known[key], module, *_both(placed, module, 0, file))
        elif canonical in stacks:
            leaves = [leaf for leaf in _STACKS if any(_ends(f"{module}.{leaf}", x) for x in settings.parameters)]
            if depths != list(range(len(leaves))):
                raise WeightsError(
                    f"{file}: {module} has {len(depths)} wrappers, and target_parameters in {CONFIG} name "
                    f"{len(leaves)} of its parameters; fetch both files again"
                )
            for leaf, depth in zip(leaves, reversed(depths), strict=True):
                yield _Pair(known[f"{canonical}.{leaf}"], f"{module}.{leaf}", *_both(placed, module, depth, file))
        else:
            raise WeightsError(f"{file}: this model has no {module}; take the adapter's own base model")


def _both(placed: Mapping[_Place, Stored], module: str, depth: int, file: Path) -> tuple[Stored, Stored]:
    found = [placed.get(_Place(module, depth, side)) for side in ("A", "B")]
    if found[0] is None or found[1] is None:
        side = "A" if found[0] is None else "B"
        raise WeightsError(f"{file}: lora_{side} of {module} is missing; fetch the file again")
    return found[0], found[1]


def _checked(pair: _Pair, shape: Sequence[int], rank: int) -> tuple[Stored, Stored]:
    """Returns the pair's tensors when they have the shapes that model and rank ask for."""
    *stack, n_out, n_in = shape
    n = rank * (stack[0] if stack else 1)
    fitting = [((n, n_in), (n_out, n))]
    if stack:
        fitting.append(((n, n_out), (n_in, n)))
    given = (pair.a.shape, pair.b.shape)
    if given not in fitting:
        raise WeightsError(
            f"{pair.a}: factors of {pair.target} have shapes {given[0]} and {given[1]}, where this model and rank "
            f"{rank} take {' or '.join(f'{a} and {b}' for a, b in fitting)}; take the adapter's own base model"
        )
    return pair.a, pair.b


def _read(stored: Stored) -> Tensor:
    tensor = read_whole(stored)
    if not tensor.isfinite().all():
        raise WeightsError(f"{stored}: holds numbers that are infinite or none; the training failed, or the file did")
    return tensor


def _of_experts(a: Tensor, b: Tensor, scale: float, shape: Sequence[int], settings: Settings) -> Factors:
    """Returns the factors of a stack [E out in], those of experts that have any."""
    E, n_out, n_in = shape
    slow = torch.unflatten(a, 0, (E, -1))  # E r X
    fast = torch.unflatten(b, 1, (-1, E)).permute(2, 0, 1)  # E Y r
    is_turned = settings.is_turned if n_out == n_in else a.shape[1] == n_out
    ours = Factors(fast.mT, slow.mT, scale) if is_turned else Factors(slow, fast, scale)
    used = (ours.a.flatten(1).any(1) | ours.b.flatten(1).any(1)).nonzero().flatten()
    if len(used) in (0, E):
        return Factors(ours.a.contiguous(), ours.b.contiguous(), scale)
    return Factors(ours.a[used].contiguous(), ours.b[used].contiguous(), scale, tuple(used.tolist()))


def _patterns(path: Path, found: Mapping[str, Any], kind: str) -> list[tuple[str, Any]]:
    patterns = found.get(f"{kind}_pattern") or {}
    if not isinstance(patterns, dict):
        raise WeightsError(f"{path}: {kind}_pattern is no object; fetch it again")
    for key in patterns:
        if not _PATTERN.fullmatch(key):
            raise WeightsError(f"{path}: {kind}_pattern has {key!r}; only names or their endings are read")
    return list(patterns.items())


def _rank(path: Path, field: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
        raise WeightsError(f"{path}: {field} is {value!r}, not a whole number within 1..{MAX_RANK}")
    return value


def _alpha(path: Path, field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise WeightsError(f"{path}: {field} is {value!r}, not a number of ordinary size")
    return float(value)


def _is_turned(version: object) -> bool:
    """Whether the PEFT of this version takes [E in out] for [E out in]; one that does not say is a new one."""
    match = re.match(r"0\.(\d{1,4})\b", version) if isinstance(version, str) else None
    return match is None or int(match[1]) >= 19


def _ends(name: str, pattern: str) -> bool:
    """Whether a pattern, which is a name, means this one, as PEFT has it: all of it, or its end behind a dot."""
    plain = pattern.removeprefix("^").replace("\\", "")
    return name == plain or (not pattern.startswith("^") and name.endswith(f".{plain}"))


# Writing ------------------------------------------------------------------------------------------------------------


def _targets(config: LlamaConfig) -> dict[str, str]:
    """Returns the names of all adaptable parameters, ours to those of transformers' modules and parameters."""
    return {name: names.written_hf(key, nested=config.vision is not None) for name, key in _keys(config).items()}


def _keys(config: LlamaConfig) -> dict[str, str]:
    """Returns the canonical keys of all adaptable parameters by our names."""
    known = shapes(config)
    return {
        row.ours: row.hf
        for row in names.rows(config)
        if len(known[row.ours]) > 1 and row.half != 1 and (row.hf.endswith(".weight") or row.unfused)
        if row.ours != "embedding.weight"  # a table, whose factors PEFT calls otherwise
    }


def _written(
    name: str, adapter: Mapping[str, Factors], targets: Mapping[str, str], config: LlamaConfig
) -> Iterator[tuple[str, Tensor]]:
    """Yields both factors of a parameter under PEFT's keys, in its order of numbers."""
    factors, (module, _, leaf) = adapter[name], targets[name].rpartition(".")
    a, b, inner = factors.a.detach(), factors.b.detach(), ""
    if leaf in _STACKS:
        E = config.text.n_experts
        whole_a, whole_b = a.new_zeros(E, *a.shape[1:]), b.new_zeros(E, *b.shape[1:])
        ids = list(range(E)) if factors.experts is None else list(factors.experts)
        whole_a[ids], whole_b[ids] = a, b
        a, b = whole_b.mT.flatten(0, 1), whole_a.permute(2, 1, 0).flatten(1)  # E*r out, in r*E: turned, as PEFT has it
        has_both = name.endswith("gate_up") and f"{name.removesuffix('gate_up')}down" in adapter
        inner = ".base_layer" if has_both else ""
    yield f"{_PREFIX}{module}{inner}.lora_A.weight", a
    yield f"{_PREFIX}{module}{inner}.lora_B.weight", b


def _settings_of(adapter: Mapping[str, Factors], targets: Mapping[str, str], base: str) -> dict[str, Any]:
    """Returns the `adapter_config.json`: what most maps have, and patterns for the others."""
    ranks = Counter(factors.rank for factors in adapter.values())
    alphas = Counter(_number(factors.scale * factors.rank) for factors in adapter.values())
    rank, alpha = ranks.most_common(1)[0][0], alphas.most_common(1)[0][0]
    own = {targets[name].removesuffix(".weight"): factors for name, factors in adapter.items()}
    modules = [target.removesuffix(".weight") for target in targets.values() if target.endswith(".weight")]
    stacks = [target for target in targets.values() if not target.endswith(".weight")]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": _endings(own, modules),
        "target_parameters": _endings(own, stacks) or None,
        "rank_pattern": {each: f.rank for each, f in own.items() if f.rank != rank},
        "alpha_pattern": {each: a for each, f in own.items() if (a := _number(f.scale * f.rank)) != alpha},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _endings(wanted: Container[str], every: Sequence[str]) -> list[str]:
    """Returns the shortest endings of names that mean all of `every` that are `wanted`, and none of the others."""
    found: dict[str, None] = {}
    for parts in (name.split(".") for name in every if name in wanted):
        endings = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        found[next(each for each in endings if all(x in wanted for x in every if _ends(x, each)))] = None
    return list(found)


def _number(value: float) -> float | int:
    """Returns the number that was meant: products of rank and scale are a little off."""
    near = float(f"{value:.12g}")
    return int(near) if near.is_integer() else near
