"""A folder of one's own entries, which another person can use as it is: their registry, and what to do with it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from zoo.catalog.entry import Entry
from zoo.catalog.registry import OWN, Registry
from zoo.catalog.store import with_files
from zoo.catalog.task import is_dense
from zoo.storage.fetch import fetch
from zoo.storage.files import WeightsFile, atomic_path

README = "README.md"
MARK = "<!-- Written anew with each entry. To keep a text of your own, take this line out. -->"


def check_new(name: str, folder: Path, registry: Registry) -> None:
    """Raise OptionError where a new entry of a folder cannot be called so: it is taken, or cannot stand in a path."""
    for known in (Registry.at(folder), registry):
        known.check_new(name)


def carried(origin: Entry, folder: Path) -> WeightsFile | None:
    """An entry's own backbone weights, as one of another folder names them: a file beside its registry is copied."""
    own = origin.backbone_weights
    if own is None or not own.uri.startswith("file:"):
        return own
    source = fetch(own, origin.folder)
    with atomic_path(folder / source.name) as temporary:
        shutil.copyfile(source, temporary)
    return replace(own, uri=f"file:{source.name}")


def put_in(folder: Path, entry: Entry, files: Mapping[str, Path]) -> Entry:
    """The entry with its tasks' adapter files, which lie in `<folder>/<its name>/`; it is listed in the folder."""
    made = with_files(entry, files, f"file:{entry.name}/")
    list_in(folder, made)
    return made


def list_in(folder: Path, entry: Entry) -> Path:
    """Add an entry to the registry of a folder, or replace it there, and tell in README.md how the entries are used.

    A README.md without the line that marks it as made here is left as it is.

    Returns:
        The registry file.
    """
    file, readme = folder / OWN, folder / README
    with Registry.edited(file) as own:
        own.update(entry)
        if not readme.exists() or MARK in readme.read_text(encoding="utf-8", errors="replace"):
            with atomic_path(readme) as temporary:
                temporary.write_text(_words(own.entries()), encoding="utf-8")
    return file


def _words(entries: list[Entry]) -> str:
    """What to do with a folder, and what is in it."""
    from zoo import __version__

    one = entries[0]
    task = one.tasks[0]
    drawn = " -o seen" if is_dense(one.kind(task)) else ""
    rows = [
        f"| {e.name} | {name} | {e.backbone or e.networks[name]} | {e.classes[name]} | {_figure(e, name)} |"
        for e in entries
        for name in e.tasks
    ]
    table = "\n".join(["| entry | task | backbone | classes | test |", "| --- | --- | --- | --- | --- |", *rows])
    return f"""# Adapters for frozen networks

{MARK}

Made with ftn-zoo {__version__}, which has to be installed to use them. Nothing here depends on where this folder lies.

{table}

What a photograph shows:

    zoo predict {one.name} PHOTO.jpg --task {task}{drawn} --registry .

ONNX graphs, which run without ftn-zoo; what they take and give stands in their metadata:

    zoo export {one.name} --all-tasks -o graphs --registry .

In Python:

    import zoo
    model = zoo.load("{one.name}", task="{task}", registry=".")
    outputs = model(images, task="{task}")     # images: as model.task("{task}").preprocessing.transform() makes them

To test or to train again, the images are needed: `zoo eval {one.name} --registry . --data-root DIR`. How an entry was
trained stands in its folder's recipe.yaml, if it was trained here, and in the headers of its files.
{_backbones(entries)}"""


def _figure(entry: Entry, task: str) -> str:
    measured = (entry.measured or {}).get(task)
    return "–" if measured is None else f"{entry.metric(task).name} {entry.metric(task).text(measured)}"


def _backbones(entries: list[Entry]) -> str:
    """Where the weights of the backbones come from."""
    files = {e.backbone: e.backbone_weights.uri for e in entries if e.backbone_weights}
    inside = sorted(uri.removeprefix("file:") for uri in files.values() if uri.startswith("file:"))
    elsewhere = sorted(
        {e.backbone for e in entries if e.backbone and not files.get(e.backbone, "").startswith("file:")}
    )
    told = [f"The frozen weights are in {', '.join(inside)}."] if inside else []
    if elsewhere:
        told.append(f"The frozen weights of {', '.join(elsewhere)} are not in this folder: they are fetched, or named.")
    return "\n" + "\n".join(told) + "\n" if told else ""
