"""Names to directories, without a network: the hub's client is run on a cache made here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from puna.errors import WeightsError
from puna.weights.hub import resolve

COMMIT = "0123456789" * 4
RESOLVE = "import sys; from puna.weights.hub import resolve; print(resolve(sys.argv[1]))"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A client's cache: organisation/small in Hugging Face's layout, organisation/meta in Meta's, in a folder."""
    for name, files in (
        ("small", ["config.json", "model.safetensors", "original/params.json"]),
        ("meta", ["original/params.json", "original/consolidated.00.pth"]),
        ("nothing", ["README.md"]),
    ):
        root = tmp_path / f"models--organisation--{name}"
        for file in (f"snapshots/{COMMIT}/{file}" for file in files):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text("{}")
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(COMMIT)
    return tmp_path


def resolve_offline(name: str, cache: Path, code: str = RESOLVE) -> subprocess.CompletedProcess[str]:
    """Resolves in a process of its own: the client reads its settings when it is imported."""
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-c", code, name], env=environment, capture_output=True, text=True)


def test_directory_is_itself(tmp_path: Path) -> None:
    assert resolve(tmp_path) == tmp_path and resolve(str(tmp_path)) == tmp_path


def test_directory_comes_before_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "organisation" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("organisation/model") == Path("organisation/model")


@pytest.mark.parametrize(
    "name", ["", "nowhere", "/no/where", "../x/y", "a/b/c", "https://example.org/a/b", "org/model@"]
)
def test_what_is_neither_directory_nor_id_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "":
        assert resolve(name) == Path()  # the working directory, as everywhere
        return
    with pytest.raises(WeightsError, match="no such directory"):
        resolve(name)


def test_path_is_never_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="no such directory"):
        resolve(Path("organisation/model"))


def test_file_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(WeightsError, match="is a file; give the directory"):
        resolve(tmp_path / "model.safetensors")


def test_local_cache_serves_without_a_network(cache: Path) -> None:
    pytest.importorskip("huggingface_hub")
    for name in ("organisation/small", "organisation/small@main", f"organisation/small@{COMMIT}"):
        done = resolve_offline(name, cache)
        assert done.stdout.strip() == str(cache / "models--organisation--small" / "snapshots" / COMMIT), done.stderr


def test_metas_layout_is_found_in_its_folder(cache: Path) -> None:
    pytest.importorskip("huggingface_hub")
    done = resolve_offline("organisation/meta", cache)
    assert done.stdout.strip() == str(cache / "models--organisation--meta" / "snapshots" / COMMIT / "original"), (
        done.stderr
    )


def test_what_is_not_in_the_cache_is_the_operators_matter_when_offline(cache: Path) -> None:
    pytest.importorskip("huggingface_hub")
    for name in ("organisation/other", "organisation/small@v2"):
        last_line = resolve_offline(name, cache).stderr.strip().splitlines()[-1]
        assert last_line.startswith("puna.errors.DeviceError: organisation/") and "HF_HUB_OFFLINE" in last_line


def test_model_without_a_configuration_is_refused(cache: Path) -> None:
    pytest.importorskip("huggingface_hub")
    last_line = resolve_offline("organisation/nothing", cache).stderr.strip().splitlines()[-1]
    assert last_line.startswith("puna.errors.WeightsError: organisation/nothing: has neither config.json")


def test_absent_client_is_named_with_the_remedy(cache: Path) -> None:
    without = "import sys; sys.modules['huggingface_hub'] = None\n" + RESOLVE
    last_line = resolve_offline("organisation/small", cache, without).stderr.strip().splitlines()[-1]
    assert last_line.startswith("puna.errors.DeviceError: organisation/small: huggingface_hub is not installed")


def test_resolving_a_directory_imports_neither_torch_nor_the_client(tmp_path: Path) -> None:
    code = RESOLVE + "; print('torch' in sys.modules, 'huggingface_hub' in sys.modules)"
    assert resolve_offline(str(tmp_path), tmp_path, code).stdout.split()[-2:] == ["False", "False"]
