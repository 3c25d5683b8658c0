"""An entry with all that it is made of, on its way to other people: to a repository of the Hub, or into one file."""

from __future__ import annotations

import logging
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from zoo.backbones.lookup import FUSED, source_of
from zoo.catalog.entry import Entry
from zoo.catalog.places import BUNDLE, HUB, addressed, registry_with
from zoo.catalog.recipe import recipe_file
from zoo.catalog.registry import OWN, Registry
from zoo.catalog.store import SHARED, adapter_files, at_hand, shared_file, stored_backbone
from zoo.datasets import benchmark_of
from zoo.deployment.card import MARK, model_card
from zoo.drawing.tasks import draw_tasks
from zoo.errors import OptionError, WeightsError
from zoo.storage import bundles, hub
from zoo.storage.fetch import fetch
from zoo.storage.files import WeightsFile, weights_file
from zoo.training.publishing import publish

log = logging.getLogger(__name__)
CARD, PICTURE = "README.md", "tasks.png"
SIGNATURE = "zoo.sig"  # beside a registry, or in an entry's folder of a repository: over what a bundle of it has
OF_A_LIBRARY = ("pypi", "https", "hf")  # schemes of backbone weights that anybody can fetch from where they are


@dataclass(frozen=True)
class Parcel:
    """What goes out: the entries, and files by their paths."""

    entries: list[Entry]
    files: dict[str, Path]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files.values())


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
    before = _with_sources(source_of(entry.backbone, registry)[0], registry) if entry.backbone.startswith(FUSED) else []
    return [*before, entry]


def _packed(entry: Entry, registry: Registry, uri: str, weights: str | Path) -> tuple[Entry, dict[str, Path]]:
    """An entry as another registry states it, and its files by their paths there."""
    tasks = at_hand(entry, weights) or list(entry.tasks)
    adapters = adapter_files(entry, tasks, weights)
    files = {f"{entry.name}/{task}.safetensors": file for task, file in adapters.items()}
    shared = None
    if entry.shared or next(iter(adapters.values())).with_name(SHARED).exists():
        shared = shared_file(entry, next(iter(adapters.values())).parent)
        files[f"{entry.name}/{SHARED}"] = shared
    frozen = _backbone(entry, registry)
    backbone = entry.backbone_weights
    if frozen:
        path = f"backbones/{frozen.name}"
        files[path], backbone = frozen, weights_file(frozen, f"{uri}{path}")
    recipe = f"{entry.name}/recipe.yaml"
    files[recipe] = recipe_file(entry.recipe_source)
    made = replace(
        publish(entry, adapters, f"{uri}{entry.name}/"), recipe=recipe, backbone_weights=backbone, data_root=None,
        shared=weights_file(shared, f"{uri}{entry.name}/{SHARED}") if shared else None,
        weights={
            task: weights_file(file, f"{uri}{entry.name}/{task}.safetensors") for task, file in adapters.items()
        },
    )  # fmt: skip
    return made, files


def _backbone(entry: Entry, registry: Registry) -> Path | None:
    """The file of an entry's frozen weights, where they are the zoo's own or the user's, and not a library's."""
    own: WeightsFile | None = entry.backbone_weights
    if own:
        return None if own.uri.partition(":")[0] in OF_A_LIBRARY and not entry.origin else fetch(own, entry.folder)
    known = registry.backbone(entry.backbone)
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
    entry, registry = _entry(name, registry)
    with tempfile.TemporaryDirectory() as temporary:
        folder, uri = Path(temporary), f"{HUB}{address.repo}"
        made = parcel(entry, registry, f"{uri}/", folder, weights)
        before = None if dry_run else hub.head(address.repo)
        files = made.files | _told(made, folder, uri, before, address.repo, licence)
        files |= {f"{entry.name}/{SIGNATURE}": _existing(signature)} if signature else {}
        sizes = {path: file.stat().st_size for path, file in files.items()}
        if dry_run:
            return Pushed(uri, "", sizes)
        log.info("%s: %d files, %s kB", uri, len(files), f"{sum(sizes.values()) / 1000:,.0f}")
        commit = hub.commit(address.repo, files, f"{entry.name}, with {len(made.files)} files", before, private)
        return Pushed(uri, commit, sizes)


def _entry(name: str, registry: Registry | str | Path | None) -> tuple[Entry, Registry]:
    known = registry if isinstance(registry, Registry) else registry_with(registry)
    inside, known = addressed(name, known)
    return known.entry(inside), known


def _existing(signature: str | Path) -> Path:
    if not Path(signature).is_file():
        raise OptionError(f"There is no signature {signature}. `zoo sign` makes one.")
    return Path(signature)


def _told(
    made: Parcel, folder: Path, uri: str, before: hub.Head | None, repo: str, licence: str | None
) -> dict[str, Path]:
    """What a repository says of its entries, those that it has already among them: registry, cards, and a picture."""
    entry, known = made.entries[-1], Registry()
    if before and OWN in before.files:
        known = Registry.read(hub.hub_file(repo, OWN, before.commit))
    for each in made.entries:
        known.update(each)
    known.write(folder / OWN)
    adapters = {task: made.files[f"{entry.name}/{task}.safetensors"] for task in entry.weights or {}}
    others = [each for each in known.entries() if each.name != entry.name]
    pictured = draw(entry, folder / PICTURE)
    cards = {f"{entry.name}/{CARD}": "", CARD: f"{entry.name}/"}
    if before and CARD in before.files and MARK not in hub.hub_file(repo, CARD, before.commit).read_text("utf-8"):
        del cards[CARD]  # somebody's own
    files = {f"{entry.name}/{PICTURE}": folder / PICTURE} if pictured else {}
    for path, to in cards.items():
        text = model_card(
            entry, licence, adapters, f"{uri}/{entry.name}", f"{to}{PICTURE}" if pictured else "", others if to else ()
        )
        files[path] = folder / path.replace("/", "_")
        files[path].write_text(str(text), encoding="utf-8")
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
    if file.exists() and not zipfile.is_zipfile(file):
        raise OptionError(f"{file} is no bundle; it is not overwritten. Name another file.")
    entry, known = _entry(name, registry)
    with tempfile.TemporaryDirectory() as temporary:
        made = parcel(entry, known, "file:", Path(temporary), weights)
        signed = {SIGNATURE: _existing(signature)} if signature else {}
        bundles.pack(file, made.files | signed, {"entry": entry.name})
    return file
