"""The step of the installation that compiles the C++ kernels. Where that cannot be done, puna runs without them."""

import runpy
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeKernels(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        kernels = runpy.run_path(str(Path(self.root, "src", "puna", "kernels", "build.py")))
        try:
            library = kernels["build"]()
        except kernels["CannotBuildError"] as error:
            print(f"puna: the C++ kernels were not built, the portable path is used: {error}", file=sys.stderr)
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["artifacts"].append(f"src/puna/kernels/native/{library.name}")
