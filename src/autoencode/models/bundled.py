"""The bundled restorer: its file in the package, and the words that stand for a model to start from."""

from __future__ import annotations

from pathlib import Path

# In place of a path: the bundled restorer, and no model to start from.
BUNDLED, RANDOM = "bundled", "random"
BUNDLED_PATH = Path(__file__).with_name("restorer.safetensors")


def path_of_model(given: str | Path) -> Path:
    """Return the path of a model. "bundled" is the bundled restorer, unless a file or folder is so called."""
    path = Path(given)
    return BUNDLED_PATH if str(path) == BUNDLED and not path.exists() else path


def name_of_model(given: str | Path) -> str:
    """Return how a run names the model it starts from, wherever it is continued: a word, or a full path."""
    if str(given) == RANDOM:
        return RANDOM
    path = path_of_model(given)
    return BUNDLED if path == BUNDLED_PATH else str(path.resolve())
