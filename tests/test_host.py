"""What a machine says of itself."""

import json

from puna.host import Gpu, Host, describe


def test_this_machine_has_a_processor_cores_and_torch() -> None:
    here = describe()
    assert here.processor and here.cores >= 1 and here.packages["torch"]
    assert here.memory_bytes is None or here.memory_bytes > 2**30


def test_a_host_survives_being_written_and_read() -> None:
    here = Host(
        processor="x", instructions=("avx2",), cores=2, memory_bytes=None, system="s", python="3.11",
        gpus=(Gpu(name="H100", memory_bytes=80),), packages={"torch": "2.13.0"},
    )  # fmt: skip
    assert Host.from_json(json.loads(json.dumps(here.to_json()))) == here
