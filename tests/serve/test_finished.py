from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.errors import ConfigError
from puna.serve.finished import Finished


def line(number: int) -> bytes:
    return b"answer <%d> %s\n" % (number, b"x" * (number % 5))


def identity(number: int) -> bytes:
    return b"<%d>" % number


@settings(max_examples=100, deadline=None)
@given(st.permutations(range(12)), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 9)), max_size=4))
def test_lines_end_in_order_and_none_is_finished_twice_however_often_a_run_is_killed(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], kills: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("run") / "out"
    early = path.with_name("out.early")
    ends = [*sorted({after for after, _ in kills}), 12]
    torn = dict(kills)
    done: list[int] = []
    for end in ends:
        finished = Finished(path)
        finished.check(map(identity, range(12)))
        assert [number for number in range(12) if finished.has(number)] == sorted(done)
        for number in [number for number in order if number not in done][: max(end - len(done), 0)]:
            finished.add(number, line(number))
            done.append(number)
        finished.close()
        if end in torn:  # the process is killed while it writes one more line, to one file or the other
            for file in (path, early):
                with file.open("ab") as out:
                    out.write((b"7 " if file == early else b"") + b"answer <99> torn"[: torn[end]])
    assert path.read_bytes() == b"".join(map(line, range(12)))
    finished = Finished(path)
    finished.close()
    assert not early.exists()


def test_lines_that_were_moved_right_before_a_kill_are_not_moved_again(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(line(0) + line(1))
    path.with_name("out.early").write_bytes(b"1 " + line(1) + b"2 " + line(2) + b"4 " + line(4))
    finished = Finished(path)
    assert path.read_bytes() == line(0) + line(1) + line(2)
    assert [number for number in range(6) if finished.has(number)] == [0, 1, 2, 4]
    assert (finished.n_before, finished.n_early) == (4, 1)
    finished.close()


def test_answers_to_another_input_are_refused_and_left_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(line(0) + line(1))
    path.with_name("out.early").write_bytes(b"3 " + line(3))
    finished = Finished(path)
    finished.check(map(identity, range(9)))
    for others in ([0, 2, 2, 3], [0, 1, 2, 4], [0]):
        with pytest.raises(ConfigError, match="name another output, or remove it"):
            finished.check(map(identity, others))
    finished.close()
    assert path.read_bytes() == line(0) + line(1)


def test_a_file_that_another_run_writes_is_refused(tmp_path: Path) -> None:
    finished = Finished(tmp_path / "out")
    with pytest.raises(ConfigError, match="another process writes it"):
        Finished(tmp_path / "out")
    finished.close()
