"""Lets torchvision be imported beside a CPU build of torch. Import this first.

The Linux wheel of torchvision is built for CUDA. Beside a CPU build of torch its compiled operators cannot be loaded,
and importing it then fails, because it registers fake versions of operators that do not exist. Declaring those names is
enough for what the references use of it (resizing, which is plain torch); the declared operators cannot run.
"""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import torch


def _declare_operators() -> torch.library.Library:
    spec = find_spec("torchvision")
    assert spec is not None and spec.origin is not None, "call this only where torchvision is installed"
    source = Path(spec.origin).with_name("_meta_registrations.py").read_text(encoding="utf-8")
    wanted = set(re.findall(r"""register_(?:fake|meta)\(\s*["'](?:torchvision::)?(\w+)["']""", source)) | {"nms"}
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in sorted(wanted):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor x) -> Tensor")
    return library


if sys.platform == "linux" and torch.version.cuda is None:
    OPERATORS = _declare_operators()  # the names live as long as this object
