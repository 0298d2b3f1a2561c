import math

from puna.serve.pace import Pace


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def told(pace: Pace, clock: Clock, streams: list[tuple[int, int]], seconds: list[float]) -> list[list[tuple[int, int]]]:
    """Returns who is due at each of these moments; everybody has something new each time."""
    due = []
    for clock.seconds in seconds:
        due.append(pace.due(streams))
    return due


def test_few_streams_are_told_each_token_and_many_take_turns() -> None:
    clock = Clock()
    steps = [0.125 * step for step in range(9)]
    few, many = [(1, 0)], [(number, 0) for number in range(4)]
    assert told(Pace(8, clock), clock, few, steps) == [few] * 9
    due = told(Pace(8, clock), clock, many, steps)
    assert due[0] == many  # the first token of everybody at once
    assert sum(map(len, due[1:])) == 8  # within a second


def test_whoever_wants_a_whole_answer_is_told_once_and_slows_nobody() -> None:
    clock = Clock()
    pace = Pace(10, clock)
    for number in range(1, 9):
        pace.wait(number)
    whole = [(number, 0) for number in range(1, 9)]
    due = told(pace, clock, [(0, 0), *whole], [0.0, 0.11, 0.22, 1e9])
    assert due == [[(0, 0), *whole], [(0, 0)], [(0, 0)], [(0, 0)]]


def test_a_stream_that_ends_makes_room_for_the_others() -> None:
    clock = Clock()
    pace = Pace(10, clock)
    streams = [(0, 0), (0, 1)]
    assert told(pace, clock, streams, [0.0, 0.15, 0.25]) == [streams, [(0, 0)], [(0, 1)]]
    pace.end(0, 1)
    pace.forget(0)
    pace.end(7, 0)  # nobody has heard of it
    assert told(pace, clock, [(0, 0)], [1.0, 1.11, 1.22]) == [[(0, 0)]] * 3


def test_without_a_bound_everybody_is_always_due() -> None:
    clock = Clock()
    streams = [(number, 0) for number in range(100)]
    assert told(Pace(0, clock), clock, streams, [0.0, 0.0, math.nextafter(0.0, 1.0)]) == [streams] * 3
