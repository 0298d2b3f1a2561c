"""Ranks are killed at any moment: the others say whom they lost and end, and the run goes on with the same bits."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import HashStore

from puna.train.lost import RollCall
from puna.train.state import checkpoints
from tests.reference.mortal import PATIENCE, Mortals
from tests.train.runs import Command, assert_same_checkpoint, losses, of_texts

STEPS = 40
KILLS = 20
BY_TORCHRUN = 3
"""Kills behind which torchrun starts the ranks anew; behind the others that is done by hand."""


def test_whoever_does_not_answer_is_lost_and_whoever_left_word_is_quoted() -> None:
    store = HashStore()
    with ExitStack() as living:
        ranks = [living.enter_context(RollCall(store, rank, 5, patience=0.0)) for rank in (0, 1, 4)]
        RollCall(store, 3, 5).leave_word("disk full")
        store.set("call", "")
        while not store.check(["here/0", "here/1"]):
            time.sleep(0.01)
        roll = ranks[2].call()
        assert roll.left == (0, 1, 4) and roll.gone == {2: "", 3: "disk full"}
        assert str(roll) == "rank 3 ended (disk full); rank 2 lost, without a word: killed, or its host is down"
        assert ranks[0].call() == roll


def test_ranks_that_all_left_word_are_not_waited_for() -> None:
    store = HashStore()
    RollCall(store, 1, 2).leave_word("a damaged file")
    with RollCall(store, 0, 2, patience=1e6) as own:
        assert str(own.call()) == "rank 1 ended (a damaged file)"


@pytest.fixture
def toy(tables: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Tables of two ranks that share every weight and deal out the experts; steps take milliseconds."""
    draw = random.Random(5)
    texts = {
        f"d{number}": " ".join(draw.choice(("llama", "grass", "sun", "herd")) for _ in range(draw.randint(1, 6)))
        for number in range(40)
    }
    tables = of_texts(tables, texts, tmp_path)
    tables["batch"] |= {"accumulate": 4}
    return tables | {
        "schedule": tables["schedule"] | {"steps": STEPS},
        "parallel": {"shard": 2, "expert": 2},
        "checkpoint": {"every_steps": 3, "every_seconds": 0},
    }


@pytest.mark.slow
def test_a_run_whose_ranks_are_killed_twenty_times_ends_with_the_bits_of_one_left_alone(
    toy: dict[str, Any], tmp_path: Path
) -> None:
    """A random rank at random steps, between steps and while a checkpoint is written; at first under torchrun, which
    starts the ranks again, then by hand. Weights, optimiser and log are the same to the last bit."""
    alone = Command(toy, tmp_path / "alone")
    assert alone.start().join() == [0, 0]
    killed = Command(toy, tmp_path / "killed")
    draw = random.Random(20)
    moments = sorted(draw.randrange(1, STEPS - 6) for _ in range(KILLS))
    killed_under_torchrun(killed, moments[:BY_TORCHRUN], draw)
    half_written, said = 0, []
    for number, moment in enumerate(moments[BY_TORCHRUN:]):
        ranks, victim = killed.start(), draw.randrange(2)
        if number % 4:  # else while they begin
            ranks.wait_until(partial(killed.has_come_to, moment, number % 4 == 2))
        time.sleep(draw.random() * (0.02 if number % 4 else 1.0))
        ranks.kill(victim)
        ranks.told_to_end()  # as torchrun does: whoever waits for ranks that never came would wait for long
        codes = ranks.join()
        assert codes[victim] == -signal.SIGKILL and codes[1 - victim] in (2, -signal.SIGTERM), ranks.words
        if codes[1 - victim] == 2:
            assert_said_once(ranks, victim)
            said.append(victim)
        half_written += killed.is_writing
        print(f"kill {number}: rank {victim}, {killed.n_logged} steps, half written {killed.is_writing}, exits {codes}")
    assert set(said) == {0, 1} and len(said) > KILLS // 2 and half_written
    assert killed.start().join() == [0, 0]
    assert losses(killed.run) == losses(alone.run) and len(losses(alone.run)) == STEPS
    assert_same_checkpoint(killed.run, alone.run)
    weights = [(each.run / "model" / "model.safetensors").read_bytes() for each in (killed, alone)]
    assert weights[0] == weights[1]


def assert_said_once(ranks: Mortals, victim: int) -> None:
    """The survivor says one line: which rank, at which step, and what to do."""
    said = ranks.words[1 - victim].splitlines()
    (line,) = [each for each in said if each.startswith("puna: ")]
    assert f"rank {victim} lost" in line and "start all ranks as before: the run goes on from" in line
    assert "step " in line and "Traceback" not in ranks.words[1 - victim]


@pytest.mark.slow
@pytest.mark.parametrize("full", [0, 1])
def test_where_the_disk_of_one_rank_is_full_all_end_and_the_checkpoint_before_is_used(
    toy: dict[str, Any], tmp_path: Path, full: int
) -> None:
    toy["schedule"] |= {"steps": 12}
    command = Command(toy, tmp_path / "command")
    ranks = command.start()
    ranks.wait_until(lambda: bool(checkpoints(command.run)))
    ranks.kill(1)
    ranks.join()
    ((kept, _),) = checkpoints(command.run)
    ranks = command.start({full: 20_000})
    assert ranks.join() == [2, 2]
    for words in ranks.words:
        (line,) = [each for each in words.splitlines() if each.startswith("puna: ")]
        assert "cannot be written" in line and "File too large" in line and "make room and go on" in line
    assert [step for step, _ in checkpoints(command.run)] == [kept] and not command.is_writing
    assert command.start().join() == [0, 0]
    assert f"resumed at step {kept} of 12" in command.said(0)


@pytest.mark.slow
def test_a_damaged_document_that_one_rank_reads_ends_all_and_is_named_by_all(
    toy: dict[str, Any], tmp_path: Path
) -> None:
    toy["schedule"] |= {"steps": 12}
    command = Command(toy, tmp_path / "command")
    assert command.start().join() == [0, 0]
    (store,) = Path(toy["data"]["store"]).iterdir()
    content = bytearray((store / "ids.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (store / "ids.bin").write_bytes(content)
    again = Command(toy, tmp_path / "again")
    ranks = again.start()
    assert ranks.join() == [2, 2]
    lines = [line for words in ranks.words for line in words.splitlines() if line.startswith("puna: ")]
    assert len(lines) == 2 and all("is damaged; remove that folder" in line for line in lines)
    shutil.rmtree(store)
    assert again.start().join() == [0, 0]
    assert losses(again.run) == losses(command.run)
    assert_same_checkpoint(again.run, command.run)


@pytest.mark.slow
def test_of_four_ranks_one_says_whom_all_lost(toy: dict[str, Any], tmp_path: Path) -> None:
    """Also ranks that have no connection to the one that was killed answer, and are not taken for lost."""
    command = Command(toy | {"parallel": {"shard": 4, "expert": 2}}, tmp_path / "command")
    ranks = command.start()
    ranks.wait_until(partial(command.has_come_to, 4, False))
    ranks.kill(2)
    assert ranks.join() == [2, 2, -signal.SIGKILL, 2]
    lines = [[line for line in words.splitlines() if line.startswith("puna: ")] for words in ranks.words]
    assert lines[1:] == [[], [], []] and len(lines[0]) == 1
    assert "rank 2 lost, without a word" in lines[0][0]


def killed_under_torchrun(command: Command, moments: list[int], draw: random.Random) -> None:
    """Kills a rank at each moment; torchrun starts all again, as often as there are moments but one, and gives up."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(command.world)]
    argv = [sys.executable, *launcher, "--max-restarts", str(len(moments) - 1), "-m", "puna", *command.arguments]
    said = command.folder / "torchrun.txt"
    with said.open("wb") as output:
        agent = subprocess.Popen(argv, stdout=output, stderr=output, env=os.environ | {"OMP_NUM_THREADS": "1"})
    for number, moment in enumerate(moments):
        pid = _started(agent, draw.randrange(command.world), number)
        end = time.monotonic() + PATIENCE
        while command.n_logged < moment:
            assert time.monotonic() < end and agent.poll() is None, said.read_text(encoding="utf-8")
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
    assert agent.wait(PATIENCE) == 1
    assert "lost, without a word" in said.read_text(encoding="utf-8")  # beside what torchrun has to say


def _started(agent: subprocess.Popen[bytes], rank: int, restarts: int) -> int:
    """Returns the process of that rank after so many restarts, once there is one."""
    wanted = {"RANK": str(rank), "TORCHELASTIC_RESTART_COUNT": str(restarts)}
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and agent.poll() is None:
        for pid in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split():
            if wanted.items() <= _environment(pid).items():
                return int(pid)
        time.sleep(0.05)
    raise AssertionError(f"torchrun does not start rank {rank}")


def _environment(pid: str) -> dict[str, str]:
    try:
        pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")
    except OSError:
        return {}  # it has ended
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)
