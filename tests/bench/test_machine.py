import os

import torch

from puna.bench import machine

CPU = torch.device("cpu")


def test_a_machine_says_what_it_is() -> None:
    found = machine.describe(CPU)
    assert found.processor and found.n_cores == os.cpu_count() and found.n_threads == torch.get_num_threads()
    assert found.accelerator is None


def test_shares_are_of_the_time_between_two_readings() -> None:
    before = machine.Ticks(total=100.0, idle=40.0, steal=1.0, own=10.0)
    after = machine.Ticks(total=200.0, idle=50.0, steal=6.0, own=70.0)
    found = machine.disturbance(before, after)
    assert found.steal_share == 0.05
    assert found.others_share == 0.25  # of 100 seconds 10 were idle, 5 stolen, 60 our own


def test_shares_are_unknown_where_the_system_does_not_say() -> None:
    assert machine.disturbance(None, None)[:2] == (None, None)


def test_own_time_is_not_that_of_others() -> None:
    before = machine.ticks()
    if before is None:
        assert not os.path.exists("/proc/stat")
        return
    after = machine.ticks()
    assert after is not None and after.total >= before.total and after.own >= before.own > 0


def test_peak_memory_holds_at_least_what_is_held_now() -> None:
    peak = machine.peak_resident_bytes()
    held = torch.ones(peak // 4 + 2**22)  # more than ever before
    assert machine.peak_bytes(CPU) >= held.nbytes


def test_limits_are_positive_in_every_kind_of_number() -> None:
    assert machine.read_bytes_per_second(CPU, runs=1, n_bytes=2**20) > 0
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        assert machine.flops(CPU, dtype, runs=1, size=64) > 0
