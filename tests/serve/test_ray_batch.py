import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

import puna
from puna.errors import ConfigError, DeviceError, PunaError
from puna.serve import batch

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="needs pip install 'puna[ray]'")

from ray.cluster_utils import Cluster  # noqa: E402

from puna.serve.ray_batch import Plan, run_on_cluster  # noqa: E402

AT_ONCE = 16


def plan(source: str = "cria", **options: Any) -> Plan:
    return Plan(source=source, options={"device": "cpu", "layout": None} | options, model="cria", at_once=AT_ONCE)


def write(path: Path, n: int) -> Path:
    def line(i: int) -> dict[str, Any]:
        if i % 50 == 7:
            return {"custom_id": str(i), "method": "GET"}
        messages = [{"role": "user", "content": f"Tell me of the number {i}."}]
        body = {"model": "cria", "temperature": 0, "max_tokens": 20 + i * 37 % 190, "messages": messages}
        return {"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions", "body": body}

    path.write_text("".join(json.dumps(line(i)) + "\n" for i in range(n)), encoding="utf-8")
    return path


def answers(path: Path) -> list[tuple[str, Any]]:
    found = []
    for line in path.read_text("utf-8").splitlines():
        document = json.loads(line)
        response = document["response"]
        said = document["error"] if response is None else response["body"]["choices"][0]["message"]["content"]
        found.append((document["custom_id"], said))
    return found


@pytest.fixture
def cluster() -> Any:
    """A head that runs nothing and two machines with one processor each, all of them on this one."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    machines = [cluster.add_node(num_cpus=1) for _ in range(2)]
    yield cluster, machines
    ray.shutdown()
    cluster.shutdown()


def test_a_machine_that_is_lost_costs_only_its_open_lines(cluster: Any, tmp_path: Path) -> None:
    nodes, (first, _) = cluster
    source, here, there = write(tmp_path / "in", 300), tmp_path / "here", tmp_path / "there"
    assistant = puna.load("cria", device="cpu")
    asyncio.run(batch.run_here(source, here, assistant, model="cria", at_once=64, say=print))
    there.write_bytes(b"".join(here.read_bytes().splitlines(keepends=True)[:20]) + b'{"id": "torn')
    said: list[str] = []

    async def with_a_loss() -> batch.Summary:
        running = asyncio.ensure_future(
            run_on_cluster(source, there, plan(), address=nodes.address, n_workers=None, say=said.append)
        )
        while there.read_bytes().count(b"\n") < 80:
            await asyncio.sleep(0.01)
            assert not running.done(), running.result()
        nodes.remove_node(first, allow_graceful=False)
        nodes.add_node(num_cpus=1)
        return await asyncio.wait_for(running, 300)

    summary = asyncio.run(with_a_loss())
    assert (summary.lines, summary.kept, summary.failed) == (300, 20, 5)
    assert summary.answered == 300 - 20 - 5
    assert 0 < summary.repeated <= 2 * AT_ONCE, "all that one worker can have had open"
    assert answers(there) == answers(here)
    assert there.read_bytes().startswith(b"".join(here.read_bytes().splitlines(keepends=True)[:20]))
    lost = [line for line in said if "a worker was lost" in line]
    assert len(lost) == 1 and "1 are left" in lost[0], said
    print(summary, *itertools.islice(said, 5), sep="\n")


def test_what_keeps_a_model_from_being_loaded_ends_the_run(cluster: Any, tmp_path: Path) -> None:
    nodes, _ = cluster
    source = write(tmp_path / "in", 3)
    for mistake in (plan("no/such/model"), plan(dtype="float3")):
        with pytest.raises(PunaError):
            asyncio.run(
                run_on_cluster(source, tmp_path / "out", mistake, address=nodes.address, n_workers=1, say=print)
            )


def test_an_address_where_no_cluster_answers_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "in", 3)
    with pytest.raises(DeviceError, match="no cluster answers"):
        asyncio.run(run_on_cluster(source, tmp_path / "o", plan(), address="127.0.0.1:1", n_workers=1, say=print))


def test_a_cluster_without_processors_is_refused(tmp_path: Path) -> None:
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        with pytest.raises(ConfigError, match="no machine"):
            asyncio.run(
                run_on_cluster(
                    write(tmp_path / "in", 3), tmp_path / "o", plan(), address=nodes.address, n_workers=1, say=print
                )
            )
    finally:
        nodes.shutdown()
