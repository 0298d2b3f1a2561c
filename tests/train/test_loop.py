"""A run that is killed, paused or crashes ends with the same bits as one that is left alone."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from puna.errors import ConfigError, PunaError, WeightsError
from puna.records import ENERGY, read_energy
from puna.train.instructions import arithmetic
from puna.train.loop import LOG, model_config, train
from puna.train.recipe import from_dict
from puna.train.state import STATE, checkpoints
from puna.weights.checkpoint import load
from tests.train.runs import assert_same_checkpoint, lines_so_far, losses, pause_at, restored, silent

ROOT = Path(__file__).parents[2]
STORYBOOKS = ROOT.parent / "shared" / "corpus" / "asp"
RUNNER = """
import json, sys
from puna.train.loop import train
from puna.train.recipe import from_dict
train(from_dict(json.loads(sys.argv[1])), sys.argv[2], lambda line: None)
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "uninterrupted"


def reference(tables: dict[str, Any], run: Path) -> Path:
    """Trains without interruption, once for all tests here."""
    if not run.exists():
        assert train(from_dict(tables), run, silent).finished
    return run


def test_a_run_logs_each_step_and_leaves_a_model_that_loads(tables: dict[str, Any], uninterrupted: Path) -> None:
    run = reference(tables, uninterrupted)
    steps = losses(run)
    assert [step for step, _, _ in steps] == list(range(1, 9)) and steps[-1][1] < steps[0][1]
    model = load(run / "model")
    assert model.config == model_config(from_dict(tables))
    trained = dict(model.named_parameters())
    for name, master in restored(run).optimizer.masters().items():
        assert trained[name].detach().equal(master.bfloat16())
    scores = json.loads((run / "held_out.json").read_text(encoding="utf-8"))
    assert set(scores) == {"all", "seen/text", "seen/picture", "seen/chat"} and scores["all"]["documents"] == 4
    assert scores["all"]["bytes"] == sum(part["bytes"] for name, part in scores.items() if name != "all")


@pytest.mark.parametrize("at", [1, 5])
def test_a_crash_between_two_checkpoints_changes_nothing(
    tables: dict[str, Any], uninterrupted: Path, tmp_path: Path, at: int
) -> None:
    expected = reference(tables, uninterrupted)

    def crash(line: str) -> None:
        if line.startswith(f"step {at}/"):
            raise RuntimeError("power failure")

    with pytest.raises(RuntimeError, match="power failure"):
        train(from_dict(tables), tmp_path / "run", crash)
    assert train(from_dict(tables), tmp_path / "run", silent).finished
    assert_same_checkpoint(tmp_path / "run", expected)
    assert losses(tmp_path / "run") == losses(expected)


def test_sigterm_pauses_behind_a_checkpoint(tables: dict[str, Any], uninterrupted: Path, tmp_path: Path) -> None:
    expected = reference(tables, uninterrupted)

    outcome = train(from_dict(tables), tmp_path / "run", pause_at(3))
    assert (outcome.step, outcome.finished) == (3, False)
    assert train(from_dict(tables), tmp_path / "run", silent).finished
    assert_same_checkpoint(tmp_path / "run", expected)


def test_a_run_that_goes_on_with_other_instructions_says_so(tables: dict[str, Any], tmp_path: Path) -> None:
    tables["schedule"] |= {"steps": 4, "warmup_steps": 1, "decay_steps": 1}
    tables["data"]["held_out"] = ""
    said: list[str] = []

    assert not train(from_dict(tables), tmp_path / "run", pause_at(2)).finished
    ((_, home),) = checkpoints(tmp_path / "run")
    facts = json.loads((home / STATE).read_text(encoding="utf-8"))
    assert facts["arithmetic"] == arithmetic(compiled=False)
    (home / STATE).write_text(json.dumps(facts | {"arithmetic": "torch 2.0 AVX2"}), encoding="utf-8")
    assert train(from_dict(tables), tmp_path / "run", said.append).finished
    assert [line for line in said if line.startswith("warning: began with torch 2.0 AVX2, goes on with torch ")]


@pytest.mark.slow
def test_killing_the_process_at_any_moment_changes_nothing(
    tables: dict[str, Any], uninterrupted: Path, tmp_path: Path
) -> None:
    expected = reference(tables, uninterrupted)
    run = tmp_path / "run"
    argv = [sys.executable, "-c", RUNNER, json.dumps(tables), str(run)]
    for wanted, delay in ((2, 0.0), (5, 0.03), (7, 0.01)):
        process = subprocess.Popen(argv)
        while process.poll() is None and len(lines_so_far(run)) < wanted:
            time.sleep(0.005)
        time.sleep(delay)
        process.kill()
        assert process.wait() == -signal.SIGKILL  # it was still running
    subprocess.run(argv, check=True)
    assert_same_checkpoint(run, expected)
    assert losses(run) == losses(expected)


@pytest.mark.slow
@pytest.mark.skipif(not STORYBOOKS.is_dir(), reason="real storybook pages are read from ../shared/corpus, not here")
def test_the_recipe_of_cria_killed_and_resumed_on_a_busy_machine_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Six steps of the real recipe, compiled, on real pages, killed while it compiles, behind step 1 and behind step 4,
    while other processes want both cores; then the same undisturbed."""
    documents = write_story_pages(tmp_path / "corpus", 900)
    overrides = {
        "model.start": "",
        "data.documents": documents,
        "data.held_out": "",
        "data.passes": "{}",
        "data.tokenizer": ROOT / "src" / "puna" / "assets" / "cria" / "tokenizer.json",
        "data.store": tmp_path / "store",
        "schedule.steps": 6,
        "schedule.warmup_steps": 2,
        "checkpoint.every_steps": 2,
    }
    argv = [sys.executable, "-m", "puna", "train", str(ROOT / "recipes" / "cria.toml")]
    argv += [word for name, value in overrides.items() for word in ("--set", f"{name}={value}")]
    env = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled"), **os.environ, "PYTHONPATH": str(ROOT / "src")}
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    with busy_processes(2):
        kill_and_resume([*argv, "--run", str(killed)], killed, env, behind=(0, 1, 4))
    subprocess.run([*argv, "--run", str(alone)], check=True, env=env)
    assert_same_checkpoint(alone, killed)
    assert losses(alone) == losses(killed)
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (alone, killed)]
    assert weights[0] == weights[1]


def write_story_pages(folder: Path, n_pages: int) -> Path:
    """The first pages that have a picture, as documents of a picture and its text."""
    folder.mkdir()
    (folder / "asp").symlink_to(STORYBOOKS)
    lines: list[str] = []
    for number, line in enumerate((STORYBOOKS / "pages.jsonl").read_text(encoding="utf-8").splitlines()):
        page = json.loads(line)
        if page["image"] and len(lines) < n_pages:
            content = [{"type": "image", "path": f"asp/{page['image']}"}, {"type": "text", "text": page["text"]}]
            document = {"id": f"page{number}", "source": "asp", "language": page["lang"], "content": content}
            lines.append(json.dumps(document) + "\n")
    (folder / "pages.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "pages.jsonl"


def kill_and_resume(argv: Sequence[str], run: Path, env: dict[str, str], behind: Sequence[int]) -> None:
    """Starts a run, kills it as soon as its log has so many lines (none: 20 seconds after the start), and so on; the
    last start may finish."""
    for n_lines in behind:
        process = subprocess.Popen(argv, env=env)
        if n_lines == 0:
            time.sleep(20)
        while process.poll() is None and len(lines_so_far(run)) < n_lines:
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL  # it was still running
    subprocess.run(argv, check=True, env=env)


@contextmanager
def busy_processes(n: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_each_start_of_a_run_records_what_it_took_and_hand_arithmetic_agrees(
    tables: dict[str, Any], tmp_path: Path
) -> None:
    tables["data"]["held_out"] = ""
    tables["energy"] = {"tdp_watts": 100, "utilisation": 0.5, "pue": 1.2, "location_kg_per_kwh": 0.4, "source": "here"}

    assert not train(from_dict(tables), tmp_path / "run", pause_at(3)).finished
    assert train(from_dict(tables), tmp_path / "run", silent).finished
    first, second = read_energy(tmp_path / "run" / ENERGY)
    assert (first.first_step, first.last_step, second.first_step, second.last_step) == (0, 3, 3, 8)
    for record in (first, second):
        assert record.joules is not None and record.kwh is not None and record.seconds > 0
        assert record.kwh == pytest.approx(sum(record.joules.values()) / 3.6e6 * 1.2)
        assert record.location_kg == pytest.approx(record.kwh * 0.4) and record.market_kg is None
        if list(record.joules) == ["declared"]:
            assert record.joules["declared"] == pytest.approx(record.seconds * 50)
    assert first.tokens > 0 and second.tokens > 0


def test_several_batches_a_step_train_too(tables: dict[str, Any], tmp_path: Path) -> None:
    tables["batch"]["accumulate"] = 2
    tables["schedule"] |= {"steps": 2, "warmup_steps": 1, "decay_steps": 1}
    tables["data"]["held_out"] = ""
    assert train(from_dict(tables), tmp_path / "run", silent).finished
    assert len(losses(tmp_path / "run")) == 2 and not (tmp_path / "run" / "held_out.json").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_documents(
    tables: dict[str, Any], tmp_path: Path
) -> None:
    tables["optimizer"]["lr"] = 1e30
    with pytest.raises(PunaError, match=r"step [1-7]: the (loss|gradient) is not finite, documents d\d+"):
        train(from_dict(tables), tmp_path / "run", silent)


def test_a_log_that_finds_no_room_says_what_to_do(tables: dict[str, Any], tmp_path: Path) -> None:
    tables["checkpoint"] = {"every_steps": 0, "every_seconds": 0}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(line: str) -> None:
        if line.startswith("step 1/"):
            resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "run" / LOG).stat().st_size, before[1]))

    try:
        with pytest.raises(WeightsError, match=r"run: cannot be written \(File too large\); make room"):
            train(from_dict(tables), tmp_path / "run", fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_second_start_in_the_folder_of_a_run_is_refused_and_the_first_goes_on(
    tables: dict[str, Any], uninterrupted: Path, tmp_path: Path
) -> None:
    refused = []

    def start_again(line: str) -> None:
        if line.startswith("step 2/"):
            with pytest.raises(ConfigError, match=r"--run .*run: is being trained already; wait, or give"):
                train(from_dict(tables), tmp_path / "run", silent)
            refused.append(line)

    assert train(from_dict(tables), tmp_path / "run", start_again).finished and refused
    assert_same_checkpoint(tmp_path / "run", reference(tables, uninterrupted))
    assert train(from_dict(tables), tmp_path / "run", silent).finished  # nothing holds the folder any more


def test_an_unknown_model_is_refused(tables: dict[str, Any]) -> None:
    tables["model"]["preset"] = "behemoth"
    with pytest.raises(ConfigError, match=r"model.preset: 'behemoth' is unknown; choose one of scout"):
        model_config(from_dict(tables))
