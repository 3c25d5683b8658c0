"""To other people: push, bundle, sign, card."""

from __future__ import annotations

from pathlib import Path

import click

from zoo.catalog.registry import Registry
from zoo.cli.base import FILE, NEW_FILE, as_json, entry_name, main, narrate, weights
from zoo.cli.tables import show

signature = click.option("--signature", type=FILE, help="Of `zoo sign`, to lie beside the model.")
licence = click.option(
    "--licence", help="Of the weights, as the Hub writes it, such as mit. Default: the package's, of its own."
)


@main.command()
@entry_name
@click.argument("repo")
@click.option("--private", is_flag=True, help="A repository that is made is seen by its owner alone.")
@click.option("--dry-run", is_flag=True, help="Show what would be there; send nothing, and ask nothing.")
@weights
@licence
@signature
@as_json
@click.pass_obj
def push(
    registry: Registry, name: str, repo: str, private: bool, dry_run: bool, weights: str, licence: str | None,
    signature: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Put a model into the repository REPO, OWNER/NAME, of the Hugging Face Hub: weights, registry, recipe, card.

    It is one commit, after which `zoo.load("hf://OWNER/NAME/MODEL")` has it. Who may write there is what HF_TOKEN says.
    """
    from zoo.deployment.parcel import push as send

    narrate()
    made = send(
        name, repo, private=private, dry_run=dry_run, weights=weights, licence=licence, signature=signature,
        registry=registry,
    )  # fmt: skip
    show([{"file": path, "bytes": size} for path, size in made.files.items()], as_json)
    if not as_json:
        done = f"{made.address} would have these." if dry_run else f"{made.address} has them, at commit {made.commit}."
        click.echo(f"{done} In Python: zoo.load({f'{made.address}/{name}'!r})")


@main.command()
@entry_name
@click.option("-o", "--out", type=NEW_FILE, required=True, help="The bundle, FILE.zoo.")
@weights
@signature
@click.pass_obj
def bundle(registry: Registry, name: str, out: Path, weights: str, signature: Path | None) -> None:
    """Put a model with all that it is made of into one file, which stands wherever a model's name does."""
    from zoo.deployment.parcel import bundle as make

    narrate()
    made = make(name, out, weights=weights, signature=signature, registry=registry)
    click.echo(f"{made}: {made.stat().st_size / 1000:,.0f} kB. In Python: zoo.load({str(made)!r})")


@main.command()
@click.argument("what")
@click.option("--key", type=FILE, required=True, help="A private key on an elliptic curve, as PEM.")
@click.option("--password", envvar="ZOO_KEY_PASSWORD", help="Of the key; better by ZOO_KEY_PASSWORD.")
@click.option("-o", "--out", type=NEW_FILE, help="Default: zoo.sig in the folder, or NAME.sig here.")
@click.pass_obj
def sign(registry: Registry, what: str, key: Path, password: str | None, out: Path | None) -> None:
    """Sign a model, or a folder of models: registry, recipes and weights. `zoo verify --signed-by` checks it."""
    from zoo.deployment.signing import sign as make

    click.echo(make(what, key, out, password=password, registry=registry))


@main.command()
@entry_name
@click.option("-o", "--out", type=NEW_FILE, required=True, help="The card's file, such as README.md.")
@licence
@click.pass_obj
def card(registry: Registry, name: str, out: Path, licence: str | None) -> None:
    """Write a model card: tasks, figures, parameters, how to use a model and how it was made."""
    from zoo.deployment.card import write_card

    click.echo(write_card(registry.entry(name), out, licence))
