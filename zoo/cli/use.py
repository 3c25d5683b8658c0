"""Using adapters: eval, verify, predict, generate, bench."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo.catalog.entry import Entry
from zoo.catalog.registry import Registry
from zoo.catalog.score import decathlon_score, scale
from zoo.catalog.task import GENERATION, is_dense
from zoo.cli.base import (
    FILE,
    NEW_FILE,
    NEW_FOLDER,
    PLACE,
    POSITIVE,
    SEED,
    as_json,
    data_root,
    entry_name,
    main,
    narrate,
    skip_unreadable,
    weights,
)
from zoo.cli.tables import show
from zoo.errors import CheckFailed, DataError, OptionError

if TYPE_CHECKING:
    from zoo.models.multitask import MultiTaskModel
    from zoo.verification.mistakes import Answers


@main.command("eval")
@entry_name
@click.option("--task", help="This task alone. Default: all.")
@weights
@click.option("--confusion", is_flag=True, help="Of classifiers: the accuracy of each class, and what is mixed up.")
@click.option("-o", "--out", type=NEW_FILE, help="With --confusion: draw it; a name without .png and .svg.")
@click.option("--errors", type=NEW_FOLDER, help="Draw what was wrong, with both answers, into this folder.")
@click.option(
    "--kid",
    is_flag=True,
    help="Of tasks that make pictures: how far drawn ones are from the training pictures; 0 is nearest.",
)
@data_root
@skip_unreadable
@as_json
@click.pass_obj
def evaluate(
    registry: Registry, name: str, task: str | None, weights: str, confusion: bool, out: Path | None,
    errors: Path | None, kid: bool, data_root: Path | None, skip_unreadable: bool, as_json: bool,
) -> None:  # fmt: skip
    """Measure how well a model does its tasks on their test images: a classifier's top-1 accuracy, for example."""
    from zoo.loader import load
    from zoo.verification import claims
    from zoo.verification.mistakes import Answers

    narrate()
    entry = registry.entry(name)
    if kid and GENERATION not in map(entry.kind, entry.tasks if task is None else [entry.known_task(task)]):
        raise OptionError(f"--kid is of tasks that make pictures, and {name} has none such here.")
    if out and not confusion:
        raise OptionError("-o draws the confusion of classes: add --confusion.")
    if out or errors:
        from zoo.drawing.plots import pyplot

        pyplot()  # where it is not installed, it is told before anything is measured
    model = load(name, task=task, weights=weights, registry=registry)
    answers = {each: Answers(model.task(each)) for each in model.tasks} if confusion or errors else {}
    figures = claims.evaluate(entry, model, data_root, skip_unreadable, answers)
    rows = _rows(entry, figures, model.tasks)
    for row in rows:
        if row["task"] in model.tasks and entry.kind(row["task"]) == GENERATION:
            row.update(_of_pictures(entry, registry, model, row["task"], weights, kid, data_root))
    if confusion and as_json:
        rows += [_mixed_up(each, known) for each, known in answers.items()]
    score = _score(entry, registry, figures) if task is None else {}
    show([*rows, score] if score and as_json else rows, as_json)
    if score and not as_json:
        click.echo(f"decathlon score: {score['decathlon score']} against {score['against']}")
    for each, known in answers.items():
        if confusion and not as_json:
            _show_mixed_up(each, known, figures[each])
        for path in _draw_confusion(out, known, f"{name}, {each}: {figures[each]:.1f} %", each, len(answers)):
            click.echo(path, err=as_json)
        if errors:
            test = claims.test_images(entry, each, data_root, skip_unreadable)
            click.echo(known.draw_mistakes(test, errors / f"{each}.png"), err=as_json)


def _of_pictures(
    entry: Entry, registry: Registry, model: MultiTaskModel, task: str, weights: str, kid: bool, data_root: Path | None
) -> dict[str, Any]:
    """What else is told of a task that makes pictures: how near it came to those that it was trained on, as its file
    states; and if wanted how far those that it draws are from these.
    """
    from zoo.catalog.store import adapter_files
    from zoo.storage.tensors import read_header
    from zoo.verification.resemblance import KID, kernel_distance

    stated = read_header(adapter_files(entry, [task], weights)[task]).get("metrics", {})
    found: dict[str, Any] = {}
    if "train_PSNR" in stated:
        found["of training pictures dB"] = entry.metric(task).rounded(float(stated["train_PSNR"]))
    return found | ({KID: round(kernel_distance(entry, model, task, registry, data_root), 3)} if kid else {})


def _draw_confusion(out: Path | None, answers: Answers, title: str, task: str, tasks: int) -> list[Path]:
    """Draw what a classifier mixes up, if that is wanted, under a name that no other task's picture has."""
    if out is None:
        return []
    plain = out.with_suffix("") if out.suffix in (".png", ".svg") else out
    return answers.draw_confusion(plain if tasks == 1 else plain.with_name(f"{plain.name}_{task}"), title)


def _mixed_up(task: str, answers: Answers) -> dict[str, Any]:
    """What a classifier mixes up, for programs."""
    found: dict[str, Any] = {"task": task, "by class": answers.by_class(), "worst pairs": answers.worst_pairs()}
    return found | {"classes": answers.classes, "confusion": answers.confusion().tolist()}


def _show_mixed_up(task: str, answers: Answers, figure: float) -> None:
    click.echo(f"\n{task}, {figure:.2f} %, by class:")
    show(answers.by_class())
    if pairs := answers.worst_pairs():
        click.echo(f"\n{task}, mixed up most often:")
        show(pairs)


def _rows(entry: Entry, figures: dict[str, float], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Figures by task, and by part of a task, for a table; with their mean where they have one."""
    one, *others = {entry.metric(task) for task in tasks}
    if others:
        each = {key: entry.metric(key.partition(":")[0]) for key in figures}
        return [
            {"task": key, "metric": each[key].name, "value": each[key].rounded(value), "unit": each[key].unit}
            for key, value in figures.items()
        ]
    title = f"{one.name} {one.unit}"
    rows: list[dict[str, Any]] = [{"task": key, title: one.rounded(value)} for key, value in figures.items()]
    if len(tasks) > 1 and one.unit == "%":
        rows.append({"task": "mean", title: entry.mean({task: figures[task] for task in tasks})})
    return rows


def _score(entry: Entry, registry: Registry, figures: dict[str, float]) -> dict[str, Any]:
    """The decathlon score of measured figures, against the baseline's measured ones or else the paper's."""
    for kind in ("measured", "reported"):
        if known := scale(entry, registry, kind):
            words = entry.baseline if entry.baseline == "challenge" else f"{entry.baseline}, {kind}"
            return {"decathlon score": round(decathlon_score(figures, known)), "against": words}
    return {}


@main.command()
@entry_name
@click.option("--retrain", is_flag=True, help="Run the recipe again, in a temporary folder, and compare.")
@click.option(
    "--signed-by", type=FILE, metavar="KEY", help="Check the signature alone, of a model or of a folder: a public key."
)
@click.option("--signature", type=FILE, help="Default: what came with the model, zoo.sig in the folder, or NAME.sig.")
@data_root
@as_json
@click.pass_obj
def verify(
    registry: Registry, name: str, retrain: bool, signed_by: Path | None, signature: Path | None,
    data_root: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Check a model's files, parameters and accuracy against the registry; exit 1 on a difference."""
    if signed_by:
        from zoo.deployment.signing import check_signature

        count = check_signature(name, signed_by, signature, registry=registry)
        if as_json:
            show([{"model": name, "files": count, "signed by": str(signed_by)}], as_json)
        else:
            click.echo(f"{name}: {count} files are as the holder of {signed_by} signed them.")
        return
    if signature:
        raise OptionError("--signature needs --signed-by, the public key.")
    from zoo.backbones.imported import imported
    from zoo.training.options import RunOptions
    from zoo.verification import claims

    narrate()
    if known := registry.backbone(name):
        if retrain:
            raise OptionError(f"--retrain is for entries; `zoo train {name} --out DIR` runs a backbone's recipe again.")
        checks = claims.verify_backbone(known)
    elif imported(name):
        if retrain:
            raise OptionError(f"--retrain is for entries; {name} was trained by others.")
        checks = claims.verify_imported(name, registry)
    else:
        entry = registry.entry(name)
        checks = claims.verify(entry, registry, data_root) if entry.weights or not retrain else []
    if retrain:
        checks += claims.retrain(entry, registry, RunOptions(data_root=data_root))
    show([{"task": c.task, "check": c.what, "passed": c.passed, "detail": c.detail} for c in checks], as_json)
    failed = [check for check in checks if not check.passed]
    if failed:
        raise CheckFailed(f"{len(failed)} of {len(checks)} checks of {name} failed; the first: {failed[0].detail}")


@main.command()
@entry_name
@click.argument("images", nargs=-1, required=True, type=PLACE)
@click.option("--task", help="Ask this task.")
@click.option("--all-tasks", is_flag=True)
@click.option("-o", "--out", type=NEW_FOLDER, help="Folder of the pictures that dense tasks answer with.")
@click.option("--top", type=POSITIVE, default=3, show_default=True, help="How many classes to show.")
@weights
@skip_unreadable
@as_json
@click.pass_obj
def predict(
    registry: Registry,
    name: str,
    images: tuple[Path, ...],
    task: str | None,
    all_tasks: bool,
    out: Path | None,
    top: int,
    weights: str,
    skip_unreadable: bool,
    as_json: bool,
) -> None:
    """Tell what a model's tasks see in IMAGES: the most probable classes, or, of dense tasks, pictures.

    IMAGES may be folders, of which every image is taken. With --json, probabilities are shares of one.

    NAME may be a backbone that was trained on ImageNet, such as zoo/efficientnet_lite0@imagenet.
    """
    from zoo.datasets.folder import pictures_in
    from zoo.deployment.predict import classify, classify_imagenet
    from zoo.loader import load

    narrate()
    paths = pictures_in(images)
    if "/" in name:
        if task or all_tasks or out:
            raise OptionError(f"The backbone {name} has no tasks: leave out --task, --all-tasks and --out.")
        _show_classes(classify_imagenet(name, registry, paths, top, skip_unreadable), as_json)
        return
    entry = registry.entry(name)
    if (task is not None) == all_tasks:
        raise OptionError(f"Give --task or --all-tasks; the tasks of {name} are {', '.join(entry.tasks)}.")
    asked = entry.tasks if task is None else (task,)
    dense = [each for each in asked if is_dense(entry.kind(each))]
    if dense and out is None:
        raise OptionError(f"{', '.join(dense)} of {name} answer with pictures; name a folder for them: -o DIR.")
    model = load(name, task=task, weights=weights, registry=registry)
    pictures = [] if out is None else _draw(model, paths, out, skip_unreadable)
    rows = [
        {"task": each, **row} if all_tasks else row
        for each in asked
        if each not in dense
        for row in classify(model, each, paths, top, skip_unreadable)
    ]
    if as_json:
        show(pictures + rows, as_json)
    else:
        show(pictures)
        _show_classes(rows, as_json)


def _show_classes(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Classes with their probabilities: shares for programs, per cent for people."""
    if not as_json:
        for row in rows:
            if isinstance(row["classes"], dict):
                row["classes"] = ", ".join(f"{name} {100 * share:.1f} %" for name, share in row["classes"].items())
    show(rows, as_json)


def _draw(model: MultiTaskModel, images: Sequence[Path], out: Path, skip_unreadable: bool) -> list[dict[str, Any]]:
    """Write the pictures of several images; a row for each."""
    from zoo.drawing.answers import draw_answers

    _check_stems(images)
    rows: list[dict[str, Any]] = []
    for image in images:
        try:
            rows += [{"image": str(image), "picture": str(file)} for file in draw_answers(model, image, out)]
        except DataError as error:
            if not skip_unreadable:
                raise
            rows.append({"image": str(image), "picture": "does not decode"})
            click.echo(f"skipped: {error}", err=True)
    return rows


def _check_stems(images: Sequence[Path]) -> None:
    """Raise OptionError for files whose pictures would have one name."""
    stems = [image.stem for image in images]
    if twice := [image for image in images if stems.count(image.stem) > 1]:
        raise OptionError(f"{twice[0]} and {twice[1]} would be drawn under one name; draw them into two folders.")


@main.command()
@entry_name
@click.option("--task", help="Of this task alone. Default: of the same latents, of all tasks and of the backbone.")
@click.option("-n", "--number", type=POSITIVE, default=16, show_default=True, help="How many pictures.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the latents.")
@click.option(
    "--interpolate", type=POSITIVE, metavar="STEPS", help="Go from each picture to the next in so many steps."
)
@click.option("--fit", "fits", multiple=True, type=FILE, metavar="IMAGE", help="Make this picture again. Repeatable.")
@click.option("-o", "--out", type=NEW_FOLDER, required=True, help="Folder of the pictures.")
@weights
@as_json
@click.pass_obj
def generate(
    registry: Registry, name: str, task: str | None, number: int, seed: int, interpolate: int | None,
    fits: tuple[Path, ...], out: Path, weights: str, as_json: bool,
) -> None:  # fmt: skip
    """Have a model's tasks make pictures, each as a file, and all of them as a sheet."""
    from zoo.deployment import pictures
    from zoo.loader import load

    narrate()
    if "/" in name:
        from zoo.deployment.predict import entries_on

        raise OptionError(f"{name} is a backbone: name an entry on it, such as {entries_on(name, registry)}.")
    if fits and interpolate:
        raise OptionError("--fit makes pictures again, and --interpolate makes some between: leave out one of them.")
    if fits and task is None:
        raise OptionError(f"--fit needs --task; the tasks of {name} are {', '.join(registry.entry(name).tasks)}.")
    model = pictures.maker(load(name, task=task, weights=weights, registry=registry), name)
    if fits:
        show(_made_again(model, str(task), fits, out), as_json)
        return
    latents, networks = pictures.drawn(model, registry.entry(name), registry, task, number, seed)
    rows = pictures.rows_of(networks, latents, interpolate)
    sheet = list(rows.values()) if len(rows) > 1 else pictures.squared(next(iter(rows.values())))
    each = {f"{row}_{seed}_{place}": picture for row, made in rows.items() for place, picture in enumerate(made)}
    files = pictures.write({f"{task or 'all'}_{seed}": pictures.sheet(sheet)}, out)
    files += pictures.write({stem: pictures.as_image(picture) for stem, picture in each.items()}, out)
    show([{"picture": str(file)} for file in files], as_json)


def _made_again(model: MultiTaskModel, task: str, files: Sequence[Path], out: Path) -> list[dict[str, Any]]:
    """Write each picture beside what a task makes in its place, and a sheet: pictures above, answers below."""
    from zoo.deployment import pictures

    _check_stems(files)
    found = pictures.fitted(model, task, files)
    pairs = {f"{task}_{file.stem}": pictures.sheet([pair[:2]]) for file, pair in zip(files, found, strict=True)}
    pictures.write({task: pictures.sheet(list(zip(*(pair[:2] for pair in found), strict=True)))}, out)
    return [
        {"image": str(file), "PSNR dB": round(near, 2), "picture": str(path)}
        for file, (_, _, near), path in zip(files, found, pictures.write(pairs, out), strict=True)
    ]


@main.command()
@entry_name
@click.option("--task", help="Default: the first.")
@click.option("--batch", type=POSITIVE, default=16, show_default=True)
@click.option("--rounds", type=POSITIVE, default=20, show_default=True)
@as_json
@click.pass_obj
def bench(registry: Registry, name: str, task: str | None, batch: int, rounds: int, as_json: bool) -> None:
    """Time a model fused, unfused and in ONNX Runtime against its plain backbone, in turn in one process."""
    from zoo.deployment.latency import latencies

    show(latencies(registry.entry(name), registry, task, batch, rounds), as_json)
