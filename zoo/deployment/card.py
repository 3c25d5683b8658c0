"""A model card: what an entry is, how well it does, how it is used and how it was made, for a page of the Hub's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from zoo.catalog.entry import Entry
from zoo.catalog.places import HUB
from zoo.catalog.store import adapter_files
from zoo.catalog.task import CLASSIFICATION, GENERATION
from zoo.datasets import benchmark_of
from zoo.errors import OptionError
from zoo.storage.files import atomic_path
from zoo.storage.tensors import read_header

MARK = "<!-- written by `zoo card` -->"
LICENCE = "apache-2.0"  # of the package, and so of the weights in it
PIPELINES = {  # the Hub's words for kinds of tasks
    CLASSIFICATION: "image-classification", "attributes": "image-classification", "segmentation": "image-segmentation",
    "depth": "depth-estimation", GENERATION: "unconditional-image-generation",
}  # fmt: skip
OTHER = "other"  # a kind that the Hub has no word for


def model_card(
    entry: Entry, licence: str | None = None, files: Mapping[str, Path] | None = None, address: str = "",
    picture: str = "", others: Sequence[Entry] = (),
) -> ModelCard:  # fmt: skip
    """An entry's card, of the registry and of what the headers of its files say.

    Args:
        files: the adapters by task; by default those that the registry publishes.
        address: what `zoo.load` takes where the card will lie; by default the entry's name.
        picture: of the tasks, as seen from the card.
        others: entries that lie in the same place.
        licence: of the weights, as the Hub writes it; by default the package's, of weights that come with it and of
            images that the zoo draws.

    Raises:
        WeightsError: no file of the entry's can be had.
    """
    if files is None:
        files = adapter_files(entry, [task for task in entry.tasks if task in (entry.weights or {})] or entry.tasks)
    headers = {task: read_header(file) for task, file in files.items()}
    kinds = {PIPELINES.get(entry.kind(task), OTHER) for task in files}
    licence = licence or own_licence(entry)
    data = ModelCardData(
        model_name=entry.name, library_name="ftn-zoo", license=licence,
        pipeline_tag=kinds.pop() if len(kinds) == 1 and kinds != {OTHER} else None,
        tags=["ftn-zoo", "adapter", "multi-task", entry.method["name"], entry.benchmark], datasets=[entry.benchmark],
        base_model=entry.backbone if entry.backbone.startswith("timm/") else None, eval_results=_results(entry),
    )  # fmt: skip
    address = address or (
        f"{entry.origin}/{entry.name}" if entry.origin.startswith(HUB) else entry.origin or entry.name
    )
    words = _words(entry, files, headers, licence, address, picture)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{words}{_beside(others, address)}")


def own_licence(entry: Entry) -> str | None:
    """The package's, of weights that come with it and are of images that the zoo draws: nobody else's."""
    uris = [file.uri for file in (entry.weights or {}).values()]
    own = bool(uris) and all(uri.startswith("package:") for uri in uris) and not benchmark_of(entry).needs_root
    return LICENCE if own else None


def write_card(entry: Entry, file: Path, licence: str | None = None) -> Path:
    """Write an entry's card.

    Raises:
        OptionError: another file lies there.
    """
    if file.exists() and MARK not in file.read_text(encoding="utf-8", errors="replace"):
        raise OptionError(f"{file} is no card that was written here; it is not overwritten. Name another file.")
    text = str(model_card(entry, licence))
    with atomic_path(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return file


def _results(entry: Entry) -> list[EvalResult]:
    """What was measured, as the Hub's index of results has it."""
    found = []
    for task, value in (entry.measured or {}).items():
        metric = entry.metric(task)
        found.append(EvalResult(
            PIPELINES.get(entry.kind(task), OTHER), entry.benchmark, f"{entry.benchmark}, {task}",
            metric.name.lower().replace(" ", "_"), value, dataset_config=task, dataset_split="test",
            metric_name=f"{metric.name}, {metric.unit}",
        ))  # fmt: skip
    return found


def _beside(others: Sequence[Entry], address: str) -> str:
    """What else lies in a repository, each with a card of its own."""
    if not others:
        return ""
    place = address.rpartition("/")[0]
    listed = "\n".join(
        f'- [{entry.name}]({entry.name}/README.md): `zoo.load("{place}/{entry.name}")`' for entry in others
    )
    return f"\n## Also in this repository\n\n{listed}\n"


def _words(
    entry: Entry, files: Mapping[str, Path], headers: Mapping[str, Mapping[str, Any]], licence: str | None,
    address: str, picture: str,
) -> str:  # fmt: skip
    first = next(iter(files))
    shown = {key: value for key, value in entry.method.items() if key != "name"}
    options = f" ({', '.join(f'{key} {value}' for key, value in shown.items())})" if shown else ""
    stands = f"one frozen network, `{entry.backbone}`, and for each task" if entry.backbone else "for each task"
    call = f'pictures = model(model.prior("{first}").draw(4, torch.Generator().manual_seed(0)), task="{first}")'
    if entry.kind(first) != GENERATION:
        call = f'outputs = model(model.transforms("{first}")(image)[None], task="{first}")  # image: of Pillow\'s'
    frozen = sorted({str(header["backbone_sha256"]) for header in headers.values() if "backbone_sha256" in header})
    hashes = f"SHA-256 of the frozen tensors: `{'`, `'.join(frozen)}`. An adapter loads on no other.\n\n"
    page = f"""# {entry.name}

{MARK}

{len(files)} tasks of `{entry.benchmark}`: {stands} a small file of what `{entry.method["name"]}`{options} adds to it,
made with ftn-zoo, Python's package for such networks.

{_table(entry, files)}

{f"![Test images of each task]({picture})" + 2 * chr(10) if picture else ""}{hashes if frozen else ""}## Use

```python
import torch
import zoo

model = zoo.load("{address}")
{call}
```

```sh
zoo eval {address}
zoo export {address} --all-tasks -o onnx
zoo train {address} --out again
```

## How it was made

{_made(headers)}

## Limits

Each figure is of the test images of its benchmark, and of no others. {_licence(entry, licence)}
{entry.note}"""
    return page.rstrip() + "\n"


def _table(entry: Entry, files: Mapping[str, Path]) -> str:
    classes = "channels" if GENERATION in map(entry.kind, files) else "classes"
    rows = [f"| task | {classes} | test | parameters | bytes |", "| --- | --- | --- | --- | --- |"]
    for task, file in files.items():
        figure = (entry.measured or {}).get(task)
        metric = entry.metric(task)
        told = "–" if figure is None else f"{metric.name} {metric.text(figure)}"
        own = f"{entry.parameters.of(task).per_task:,}" if entry.parameters else "–"
        rows.append(f"| {task} | {entry.classes[task]} | {told} | {own} | {file.stat().st_size:,} |")
    return "\n".join(rows)


def _made(headers: Mapping[str, Mapping[str, Any]]) -> str:
    """Recipe, command, versions and machine of each task, alike ones together."""
    told: dict[str, list[str]] = {}
    for task, header in headers.items():
        recipe, versions = header.get("recipe", {}), header.get("versions", {})
        words = ", ".join(f"{name} {version}" for name, version in versions.items())
        made = f"recipe `{recipe.get('name', 'unknown')}` (SHA-256 `{str(recipe.get('sha256', ''))[:12]}…`, seed "
        made += f"{recipe.get('seed', 'unknown')}), `{header.get('command', 'unknown')}`; {words or 'versions unknown'}"
        told.setdefault(made, []).append(task)
    return "\n".join(f"- {', '.join(tasks)}: {made}." for made, tasks in told.items())


def _licence(entry: Entry, licence: str | None) -> str:
    if licence is None:
        return "The licence of these weights is not stated: ask whoever made them."
    drawn = "drawn by the package" if not benchmark_of(entry).needs_root else "under terms of their own"
    return f"The weights are under {licence}; the images that they were trained on are {drawn}."
