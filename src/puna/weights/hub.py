"""From a name to a directory: the model that ships, a directory, or a model id of the Hugging Face hub.

Out: a path for `checkpoint`. From the hub come weights, configurations and tokenizers only, never code. Its client is
imported when an id is resolved; it honours its own cache and settings, `HF_HUB_OFFLINE` among them.
Not here: what is in a directory.
"""

import re
from importlib.resources import files
from pathlib import Path

from puna.errors import DeviceError, WeightsError

PACKAGED = ("cria",)
_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_DESCRIPTIONS = ("config.json", "params.json", "original/params.json")
_HF_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")
_META_FILES = ("consolidated*.pth", "fp8_scales_*.pt", "params.json", "tokenizer.model", "tokenizer*.json")
_IN_FOLDERS = "*/*"


def resolve(name_or_path: str | Path) -> Path:
    """Returns the directory of a checkpoint.

    "cria" is always the model that ships (write "./cria" for a directory of that name); then directories come first, so
    that nothing is fetched for a path that exists. An id may name a revision: "organisation/model@revision".
    A hub model in both layouts is taken in Hugging Face's.
    Raises WeightsError for a name that is none of these or that the hub does not give, DeviceError when the hub cannot
    be reached or its client is not installed.
    """
    name = str(name_or_path)
    if name in PACKAGED:
        return _packaged(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise WeightsError(f"{name}: is a file; give the directory that holds it")
    found = _ID.fullmatch(name)
    if isinstance(name_or_path, Path) or found is None:
        raise WeightsError(f"{name}: no such directory, and not a hub id; give a directory, organisation/model or cria")
    return _fetched(found["id"], found["revision"])


def _packaged(name: str) -> Path:
    path = Path(str(files("puna"))) / "assets" / name
    if not (path / "config.json").is_file():
        raise WeightsError(f"{name}: is missing in this installation ({path}); install puna from a complete wheel")
    return path


def _fetched(model_id: str, revision: str | None) -> Path:
    """Fetches the descriptions first: they tell which other files are needed."""
    folder = _snapshot(model_id, revision, _DESCRIPTIONS, ())
    if (folder / "config.json").is_file():
        return _snapshot(model_id, revision, _HF_FILES, (_IN_FOLDERS,))
    if (folder / "params.json").is_file():
        return _snapshot(model_id, revision, _META_FILES, (_IN_FOLDERS,))
    if (folder / "original" / "params.json").is_file():
        return _snapshot(model_id, revision, tuple(f"original/{name}" for name in _META_FILES), ()) / "original"
    raise WeightsError(f"{model_id}: has neither config.json nor params.json on the hub; give a Llama 4 checkpoint")


def _snapshot(model_id: str, revision: str | None, wanted: tuple[str, ...], unwanted: tuple[str, ...]) -> Path:
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise DeviceError(
            f"{model_id}: huggingface_hub is not installed; pip install 'puna[hub]', or give a directory"
        ) from error
    try:
        return Path(
            snapshot_download(
                model_id, revision=revision, allow_patterns=list(wanted), ignore_patterns=list(unwanted) or None
            )
        )
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{model_id}: the hub gives it to those only who accepted its licence; accept it, then `hf auth login`"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        where = f" at revision {revision}" if revision else ""
        raise WeightsError(
            f"{model_id}: not on the hub{where}, or not for you; check the name, or `hf auth login`"
        ) from error
    except Exception as error:  # the client's own errors, those of its HTTP library and of its transfer library
        reason = " ".join(str(error).split()).partition(". ")[0][:200] or type(error).__name__
        raise DeviceError(
            f"{model_id}: cannot be fetched and is not complete in the local cache ({reason}); "
            "go online without HF_HUB_OFFLINE, or give a directory"
        ) from error
