"""An entry with all that it is made of, on its way to other people: to a repository of the Hub, or into one file."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from zoo.backbones.lookup import FUSED, source_of
from zoo.backbones.weights import DEEPLAB
from zoo.catalog.entry import Entry
from zoo.catalog.places import BUNDLE, HUB, entry_of
from zoo.catalog.recipe import recipe_file
from zoo.catalog.registry import OWN, Registry
from zoo.catalog.store import SHARED, adapter_files, at_hand, shared_file, stored_backbone
from zoo.datasets import benchmark_of
from zoo.deployment.card import MARK, model_card, own_licence
from zoo.drawing.tasks import draw_tasks
from zoo.errors import ConfigError, OptionError, WeightsError
from zoo.storage import bundles, hub
from zoo.storage.fetch import fetch
from zoo.storage.files import weights_file
from zoo.storage.tensors import read_header

log = logging.getLogger(__name__)
CARD, PICTURE = "README.md", "tasks.png"
SIGNATURE = "zoo.sig"  # beside a registry, or in an entry's folder of a repository: over what a bundle of it has


@dataclass(frozen=True)
class Parcel:
    """What goes out: the entries, and files by their paths."""

    entries: list[Entry]
    files: dict[str, Path]


def parcel(entry: Entry, registry: Registry, uri: str, folder: Path, weights: str | Path = "auto") -> Parcel:
    """An entry and those that its backbone is made of, with adapters, what tasks share, backbones and recipes.

    Args:
        uri: where the files will lie, such as "hf://OWNER/REPO/"; the entries' URIs are this and their paths.
        folder: takes what has to be written for it.
        weights: as of `zoo.load`.

    Raises:
        WeightsError: weights that the entry needs cannot be had.
    """
    entries, files = [], dict[str, Path]()
    for each in _with_sources(entry, registry):
        made, own = _packed(each, registry, uri, weights if each is entry else "auto")
        entries.append(made)
        files |= own
    Registry(entries).write(folder / OWN)
    return Parcel(entries, {OWN: folder / OWN, **files})


def _with_sources(entry: Entry, registry: Registry) -> list[Entry]:
    """The entry, and before it those whose fused networks are its backbone."""
    found = [entry]
    while found[0].backbone.startswith(FUSED):
        source = source_of(found[0].backbone, registry)[0]
        if source in found:
            raise ConfigError(
                "registry", [f"backbones that are made of each other: {', '.join(e.name for e in found)}"]
            )
        found.insert(0, source)
    return found


def _packed(entry: Entry, registry: Registry, uri: str, weights: str | Path) -> tuple[Entry, dict[str, Path]]:
    """An entry as another registry states it, and its files by their paths there."""
    tasks = at_hand(entry, weights) or list(entry.tasks)
    adapters = adapter_files(entry, tasks, weights)
    files = {f"{entry.name}/{task}.safetensors": file for task, file in adapters.items()}
    shared, places = None, {file.parent for file in adapters.values()}
    if entry.shared or any((place / SHARED).exists() for place in places):
        if len(places) > 1 and not entry.origin:
            raise WeightsError(
                f"The tasks of {entry.name} lie in several places, each sharing something else: "
                f"{', '.join(sorted(map(str, places)))}. Take the published ones, or train all tasks."
            )
        shared = shared_file(entry, next(iter(places)))
        files[f"{entry.name}/{SHARED}"] = shared
    backbone = entry.backbone_weights or registry.pins.get(entry.backbone.removeprefix(DEEPLAB))
    if frozen := _backbone(entry, registry):
        path = f"backbones/{frozen.name}"
        files[path], backbone = frozen, weights_file(frozen, f"{uri}{path}")
    recipe = f"{entry.name}/recipe.yaml"
    files[recipe] = recipe_file(entry.recipe_source)
    made = replace(
        entry, measured=entry.measured if entry.origin else _measured(entry, adapters), recipe=recipe,
        backbone_weights=backbone, data_root=None,
        shared=weights_file(shared, f"{uri}{entry.name}/{SHARED}") if shared else None,
        weights={
            task: weights_file(file, f"{uri}{entry.name}/{task}.safetensors") for task, file in adapters.items()
        },
    )  # fmt: skip
    return made, files


def _measured(entry: Entry, adapters: Mapping[str, Path]) -> dict[str, float] | None:
    """What the adapters' own headers say was measured; of those that say nothing, what the registry does."""
    found = dict[str, float]()
    for task, file in adapters.items():
        metric = entry.metric(task)
        stated = read_header(file).get("metrics", {}).get(metric.name)
        value = metric.rounded(float(stated)) if stated is not None else (entry.measured or {}).get(task)
        found |= {} if value is None else {task: value}
    return found or None


def _backbone(entry: Entry, registry: Registry) -> Path | None:
    """The file of an entry's frozen weights, where they are the zoo's own or the user's, and not a library's."""
    own = entry.backbone_weights
    if own:
        inside = own.uri.startswith(("file:", "package:", f"{entry.origin}/" if entry.origin else "file:"))
        return fetch(own, entry.folder) if inside else None
    known = registry.backbone(entry.backbone.removeprefix(DEEPLAB))
    if known is None:
        return None
    stored = stored_backbone(known.name)
    if known.weights:
        return fetch(known.weights, known.folder)
    if stored.exists():
        return stored
    raise WeightsError(f"There are no weights of the backbone {known.name}. Train it first: `zoo train {known.name}`.")


@dataclass(frozen=True)
class Pushed:
    """What became of a push.

    Attributes:
        commit: of the repository, with the files in it; empty of a trial.
        files: bytes, by their paths in the repository; those that lay there unchanged were not sent.
    """

    address: str
    commit: str
    files: Mapping[str, int]


def push(
    name: str, repo: str, *, private: bool = False, dry_run: bool = False, weights: str | Path = "auto",
    licence: str | None = None, signature: str | Path | None = None, registry: Registry | str | Path | None = None,
) -> Pushed:  # fmt: skip
    """Put an entry into a repository of the Hugging Face Hub, by one commit: weights, registry, recipe, model card.

    Who may write there is what HF_TOKEN, or `hf auth login`, says. Other entries of the repository stay, and so does a
    README.md that was not written here.

    Args:
        name: of an entry, as of `zoo.load`.
        repo: "OWNER/REPO"; it is made where there is none.
        private: a repository that is made is seen by its owner alone.
        dry_run: send nothing, and ask nothing.
        weights: as of `zoo.load`.
        licence: of the weights, as the Hub writes it, such as "mit".
        signature: what `zoo.deployment.signing.sign` made of the entry, to lie beside it.

    Raises:
        WeightsError: weights are missing, or the Hub did not take them; the repository is as it was then.
    """
    address = hub.Address.of(f"{HUB}{repo.removeprefix(HUB)}")
    if address.inside or address.revision:
        raise OptionError(f"{repo!r} is to be OWNER/REPO, without a revision or a name.")
    entry, registry = entry_of(name, registry)
    with tempfile.TemporaryDirectory() as temporary:
        folder, uri = Path(temporary), f"{HUB}{address.repo}"
        made = parcel(entry, registry, f"{uri}/", folder, weights)
        before = None if dry_run else hub.head(address.repo)
        files = made.files | _told(made, folder, uri, before, address.repo, licence or own_licence(entry))
        files |= {f"{entry.name}/{SIGNATURE}": _existing(signature)} if signature else {}
        sizes = {path: file.stat().st_size for path, file in files.items()}
        if dry_run:
            return Pushed(uri, "", sizes)
        log.info("%s: %d files, %s kB", uri, len(files), f"{sum(sizes.values()) / 1000:,.0f}")
        commit = hub.commit(address.repo, files, f"{entry.name}, with {len(made.files)} files", before, private)
        return Pushed(uri, commit, sizes)


def _existing(signature: str | Path) -> Path:
    if not Path(signature).is_file():
        raise OptionError(f"There is no signature {signature}. `zoo sign` makes one.")
    return Path(signature)


def _told(
    made: Parcel, folder: Path, uri: str, before: hub.Head | None, repo: str, licence: str | None
) -> dict[str, Path]:
    """What a repository says of its entries, those that it has already among them: registry, cards, and a picture."""
    held = dict[str, Path]()
    if before and OWN in before.files:
        held[OWN] = hub.hub_data(repo, before.commit)[0] / OWN
    if before and CARD in before.files:
        held[CARD] = hub.hub_file(repo, CARD, before.commit)
    known = Registry()
    if OWN in held:
        shutil.copyfile(held[OWN], folder / OWN)  # with the comment that opens it
        known = Registry.read(held[OWN])
    for each in made.entries:
        known.update(each)
    known.write(folder / OWN)
    files = dict[str, Path]()
    for each in made.entries:
        inside = folder / each.name
        inside.mkdir()
        adapters = {task: made.files[f"{each.name}/{task}.safetensors"] for task in each.weights or {}}
        picture = PICTURE if draw(each, inside / PICTURE) else ""
        files |= {f"{each.name}/{picture}": inside / picture} if picture else {}
        address = f"{uri}/{each.name}"
        text = str(model_card(each, licence, adapters, address, picture))
        if each is made.entries[-1]:  # the repository's page is that of what was pushed last
            others = [other for other in known.entries() if other.name != each.name]
            page = model_card(each, licence, adapters, address, picture and f"{each.name}/{picture}", others)
            files[CARD] = folder / CARD
            files[CARD].write_text(str(page), encoding="utf-8")
        files[f"{each.name}/{CARD}"] = inside / CARD
        files[f"{each.name}/{CARD}"].write_text(text, encoding="utf-8")
    if CARD in held and MARK not in held[CARD].read_text(encoding="utf-8", errors="replace"):
        del files[CARD]  # somebody's own
    return files


def draw(entry: Entry, file: Path) -> bool:
    """Draw the tasks of an entry, where the zoo has their images; whether it has."""
    benchmark = benchmark_of(entry)
    if benchmark.needs_root:
        return False
    draw_tasks({task: benchmark.splits(task, None).test for task in entry.tasks}, file)
    return True


def bundle(
    name: str, file: str | Path, *, weights: str | Path = "auto", signature: str | Path | None = None,
    registry: Registry | str | Path | None = None,
) -> Path:  # fmt: skip
    """Put an entry with all that it is made of into one file, which `zoo.load` takes in place of a name.

    Args:
        name: of an entry, as of `zoo.load`.
        file: `FILE.zoo`.
        weights: as of `zoo.load`.
        signature: as of `push`.

    Raises:
        OptionError: the file's name ends otherwise, or another file lies there that is no bundle.
        WeightsError: weights are missing, or the file cannot be written; what stood there is unchanged then.
    """
    file = Path(file)
    if file.suffix != BUNDLE or file.is_dir():
        raise OptionError(f"{file} names no bundle: it is to end in {BUNDLE}.")
    if file.exists() and not bundles.is_bundle(file):
        raise OptionError(f"{file} is no bundle; it is not overwritten. Name another file.")
    entry, known = entry_of(name, registry)
    with tempfile.TemporaryDirectory() as temporary:
        made = parcel(entry, known, "file:", Path(temporary), weights)
        signed = {SIGNATURE: _existing(signature)} if signature else {}
        bundles.pack(file, made.files | signed, {"entry": entry.name})
    return file
