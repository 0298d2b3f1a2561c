"""A cluster by its name; what is none is refused with what there is."""

import pytest

from puna.errors import ConfigError
from puna.plan.cluster import parse


def test_a_kind_and_a_count_make_a_cluster() -> None:
    assert parse("h100:16").count == 16 and parse("H200").count == 1
    assert parse("h200").hardware.read_bytes > parse("h100").hardware.read_bytes


@pytest.mark.parametrize("text", ["h99", "h100:", "h100:0", "h100:-1", "h100:many", "here"])
def test_what_is_no_cluster_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--hardware is '.*': "):
        parse(text)


def test_links_within_a_node_are_the_fast_ones() -> None:
    cluster = parse("h100:64")
    assert cluster.ring(8) == cluster.exchange(8) == cluster.hardware.link_bytes
    assert cluster.ring(16) == 8 * cluster.hardware.net_bytes  # all ports of a node work for it
    assert cluster.ring(8, stride=8) == cluster.hardware.net_bytes  # one member a node, one port
    assert cluster.hardware.net_bytes < cluster.exchange(16) < 2 * cluster.hardware.net_bytes  # 8 of 15 rows go out
    assert cluster.latency(8) < cluster.latency(9)
