"""Where the registry, the recipes, the packaged weights and the user's own files lie; nothing else knows."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from zoo.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]


def registry_file() -> Path:
    """The zoo's own registry: in the package of an installed wheel, beside it in a checkout."""
    return _packaged("registry.yaml")


def recipes_dir() -> Path:
    """The folder of the zoo's own recipes: in the package of an installed wheel, beside it in a checkout."""
    return _packaged("recipes")


def is_checkout() -> bool:
    """Whether the registry lies beside the package, and not in it as an installed one's does."""
    return registry_file().parent != _PACKAGE


def packaged_weights_dir() -> Path:
    """The folder of the weights that come with the package."""
    return _PACKAGE / "weights"


def store_dir() -> Path:
    """Where `zoo train` puts what it makes, and where the loader looks first: ZOO_HOME, or the user's data folder."""
    import platformdirs  # here, and not above: `zoo ls` needs neither folder

    home = os.environ.get("ZOO_HOME")
    return Path(home).expanduser() if home else Path(platformdirs.user_data_dir("ftn-zoo", appauthor=False))


def cache_dir() -> Path:
    """Where downloads are kept: ZOO_CACHE, or the user's cache folder."""
    import platformdirs

    cache = os.environ.get("ZOO_CACHE")
    return Path(cache).expanduser() if cache else Path(platformdirs.user_cache_dir("ftn-zoo", appauthor=False))


def hub_caches() -> list[Path]:
    """Where files of the Hugging Face Hub may lie: in its own cache, and in the zoo's, where downloads go.

    The Hub's is what HF_HUB_CACHE or HF_HOME say when a file is asked for.
    """
    own = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    home = os.environ.get("HF_HOME") or str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    hub = Path(own) if own else Path(home) / "hub"
    return [hub.expanduser(), cache_dir() / "hub"]


def _packaged(name: str) -> Path:
    packaged = _PACKAGE / name
    return packaged if packaged.exists() else _PACKAGE.parent / name


def within(folder: Path, relative: str) -> Path:
    """`folder / relative`; raises ConfigError where that would lie outside the folder."""
    path = folder / PurePosixPath(relative)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(relative, [f"the path leaves its folder {folder}; use a path below it"])
    return path
