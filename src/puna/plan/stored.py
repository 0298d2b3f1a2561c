"""In which numbers a checkpoint's files hold its parts, as a plan counts them.

In: what a checkpoint says of its parameters, by name. Out: a `Scheme`. A model is loaded in the numbers that it is
stored in, so a plan of a directory begins with them; `--quantize` then changes the parts that it makes small.
Not here: reading files (`weights.source`), bytes (`card.memory`).
"""

from collections import Counter
from collections.abc import Mapping

from puna.card.memory import FP8, INT4, INT8, SCHEMES, Numbers, Scheme
from puna.card.params import Part, weights
from puna.config import LlamaConfig

FORMATS: Mapping[str, Numbers] = {"int4": INT4, "int8": INT8, "fp8": FP8}
"""As the formats of `kernels.formats` take them in memory, whatever groups the files have."""


def scheme(config: LlamaConfig, formats: Mapping[str, str]) -> Scheme:
    """Returns how a checkpoint's weights are stored. formats: "int4", "int8" or "fp8" of parameters in small numbers.

    A part takes the format that most of its numbers have; its matrices in other ones count as floats.
    """
    sizes: dict[Part, Counter[str]] = {}
    for weight in weights(config):
        if weight.name in formats:
            sizes.setdefault(weight.part, Counter())[formats[weight.name]] += weight.size
    most = {part: found.most_common(1)[0][0] for part, found in sizes.items()}
    others = (each for each in weights(config) if each.part in most and formats.get(each.name) != most[each.part])
    return Scheme(
        small={part: FORMATS[name] for part, name in most.items()}, kept=frozenset(each.name for each in others)
    )


def changed(stored: Scheme, quantize: str) -> Scheme:
    """Returns what a checkpoint becomes by `--quantize`, one of `SCHEMES`: "none" leaves it as it is stored."""
    if quantize == "none":
        return stored
    wanted = SCHEMES[quantize]
    return Scheme(small={**stored.small, **wanted.small}, keeps_ends=wanted.keeps_ends)


def words(scheme: Scheme) -> str:
    """Returns which parts are in how many bits, for people."""
    bits: dict[int, list[str]] = {}
    for part, numbers in scheme.small.items():
        bits.setdefault(numbers.bits, []).append(part.replace("_", " "))
    found = (f"{', '.join(parts)} in {n} bits" for n, parts in sorted(bits.items()))
    return "; ".join(found) or "floats"
