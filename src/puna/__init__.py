"""puna makes the Llama 4 model card run: `puna.load(name)` gives an assistant that sees pictures, chats and completes.

Importing this package defines names and nothing else; torch comes with the first use of `load`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from puna.chat import load as load

__version__ = "0.1.0"

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from puna.chat import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
