"""Counts the parameters of every preset on the meta device: no weights, no memory."""

from puna.model.count import count_parameters
from puna.presets import PRESETS

for name, config in PRESETS.items():
    count = count_parameters(config)
    print(f"{name:10} {count.total / 1e9:8.3f} B in total, {count.activated / 1e9:7.3f} B for each token")
    for part, n in count.parts().items():
        if n:
            print(f"{'':10} {n:>18,}  {part.replace('_', ' ')}")
