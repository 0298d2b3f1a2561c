"""The table of accelerators is complete, and says where it is from."""

from puna.hardware import KINDS, usable


def test_every_kind_names_its_source_and_can_be_used() -> None:
    for name, kind in KINDS.items():
        assert kind.source and kind.flops["bfloat16"] > 0 and kind.memory_bytes > 2e10, name
        assert kind.rate("fp4") >= kind.flops["bfloat16"]  # what it lacks is done in bfloat16


def test_what_a_model_may_take_of_a_device_is_less_than_it_has() -> None:
    for kind in KINDS.values():
        assert 0 < usable(kind.memory_bytes) < kind.memory_bytes - kind.reserve_bytes / 2
