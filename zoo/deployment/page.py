"""A page to try an entry on: a picture is dropped, and the tasks that are chosen say what they see in it."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from zoo.catalog.task import GENERATION, Task
from zoo.datasets import open_image
from zoo.drawing.answers import draw_answer
from zoo.errors import DataError, OptionError, extra
from zoo.kinds import get_kind
from zoo.kinds.base import DenseKind, LabelKind, main_output
from zoo.models.multitask import MultiTaskModel

ALL = "all tasks"
TOP = 3  # classes that are shown
LARGEST = 25_000_000  # bytes of a picture that is taken
HEADERS = ["task", "ms for the pass", "own parameters"]
PREVIEW, WIDTH = 512, 280  # pixels, at most, of the picture's longer side on the page; at least, of an answer


class Answering:
    """What the tasks of a model say of pictures, for a page.

    Raises:
        OptionError: the model takes clips, which a page cannot show, or makes pictures.
    """

    def __init__(self, model: MultiTaskModel) -> None:
        self.model = model
        for name in model.tasks:
            known = model.task(name).preprocessing
            if known.frames:
                raise OptionError(f"{name} takes clips, and the page takes pictures: use `zoo predict`.")
            if model.task(name).kind == GENERATION:
                raise OptionError(f"{name} makes pictures, and the page takes them: use `zoo generate`.")
            self._outputs(name, torch.zeros(1, *known.input_size))  # a task's first pass is looked at, and takes longer

    def __call__(self, picture: Image.Image, task: str) -> tuple[dict[str, float] | Image.Image, float]:
        """The classes with their probabilities, or the picture of a map; and the seconds of the pass."""
        known = self.model.task(task)
        outputs, seconds = self._outputs(task, self.model.transforms(task)(picture)[None])
        kind = get_kind(known.kind)
        if isinstance(kind, DenseKind):
            with tempfile.TemporaryDirectory() as folder:
                file = draw_answer(known, kind.answer(outputs)[0].numpy(), Path(folder, f"{task}.png"))
                return Image.open(file).convert("RGB"), seconds
        assert isinstance(kind, LabelKind)
        shares = kind.probabilities(outputs[0]).tolist()
        return dict(zip(known.classes, shares, strict=True)), seconds

    def seen(self, file: str | None, tasks: Sequence[str]) -> tuple[str, Image.Image | None, dict[str, Any]]:
        """What is told of a file, its picture if it is one that can be taken, and what each task says of that."""
        if file is None or not Path(file).is_file():  # uploads go after an hour
            return "Drop a picture.", None, {}
        try:
            picture = open_image(Path(file))
            found = {task: self(picture, task) for task in tasks}
        except DataError as error:
            why = str(error).replace(file, Path(file).name)  # and not where uploads lie
            return f"**{Path(file).name} cannot be taken:** {why}", None, {}
        return f"{Path(file).name}, {picture.width}×{picture.height} pixels", picture, found

    def _outputs(self, task: str, inputs: Tensor) -> tuple[Tensor, float]:
        start = time.perf_counter()
        with torch.no_grad():
            outputs = main_output(self.model.answering(task)(inputs))
        return outputs, time.perf_counter() - start


def page(name: str, model: MultiTaskModel) -> Any:
    """The page of a model, a `gradio.Blocks`; raises MissingExtraError where gradio is not installed.

    Args:
        name: of the entry, which is the page's title.
    """
    with extra("app", "The page"):
        import gradio as gr

    answering, names = Answering(model), list(model.tasks)

    def answers(file: str | None, chosen: str) -> list[Any]:
        """What a picture and a task change on the page: what is told, preview, table, and each task's answer."""
        asked = [each for each in names if chosen in (ALL, each)]
        said, picture, found = answering.seen(file, asked)
        shown = [gr.update(value=found[each][0] if each in found else None, visible=each in asked) for each in names]
        own = {each: model.count_parameters(each).per_task for each in found}
        rows = [[each, f"{1000 * seconds:.1f}", f"{own[each]:,}"] for each, (_, seconds) in found.items()]
        return [said, picture and _preview(picture), rows or None, *shown]

    with gr.Blocks(title=name, analytics_enabled=False, delete_cache=(3600, 3600)) as made:
        gr.Markdown(f"# {name}\n{_summary(model)}")
        with gr.Row():
            with gr.Column():
                file = gr.File(label="Drop a picture", height=120)
                task = gr.Radio([*names, ALL] if len(names) > 1 else names, value=names[0], label="Task")
                told = gr.Markdown(elem_id="told")
                preview = gr.Image(label="What was dropped", interactive=False, buttons=[])
            with gr.Column(scale=2):
                with gr.Row():
                    places = [_place(gr, model.task(each), visible=each == names[0]) for each in names]
                table = gr.Dataframe(headers=HEADERS, interactive=False, buttons=[])
        kept = gr.State(None)  # the picture, when the place for the next one is free again
        common: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        # One at a time: matplotlib draws one figure at a time, and times would be those of several.
        answer: dict[str, Any] = {"fn": answers, "inputs": [kept, task], "outputs": [told, preview, table, *places],
                  "concurrency_limit": 1, "concurrency_id": "answers", **common}  # fmt: skip
        file.upload(lambda name: [None, name], file, [file, kept], **common).then(**answer)
        task.change(**answer)
    return made


def serve(made: Any, host: str, port: int | None) -> None:
    """Serve a page until it is interrupted, to this machine alone unless `host` says otherwise.

    Raises:
        OptionError: that cannot be listened on.
    """
    import gradio as gr

    try:
        place = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(place[0]) as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(place[4])
    except OSError as error:
        where = f"{host}, port {port}" if port else host
        raise OptionError(f"Cannot listen on {where}: {error.strerror}. Choose another --port or --host.") from error
    made.launch(
        server_name=host, server_port=port, share=False, show_error=True, ssr_mode=False, max_file_size=LARGEST,
        footer_links=[], theme=gr.themes.Default(font=["sans-serif"], font_mono=["monospace"]),
    )  # fmt: skip


def _place(gr: Any, task: Task, visible: bool) -> Any:
    """Where the answer of a task is shown."""
    if isinstance(get_kind(task.kind), DenseKind):
        return gr.Image(label=task.name, visible=visible, interactive=False, buttons=[], min_width=WIDTH)
    return gr.Label(label=task.name, visible=visible, num_top_classes=TOP, min_width=WIDTH)


def _summary(model: MultiTaskModel) -> str:
    counts = [model.count_parameters(name) for name in model.tasks]
    tasks = f"{len(counts)} task" + "s" * (len(counts) > 1)
    if not counts[0].backbone:
        return f"{tasks}, each with a network of its own that shares weights with the others."
    own = f"{counts[0].per_task:,} each beside its head"
    return f"One frozen backbone of {counts[0].backbone:,} parameters, {tasks} of {own}."


def _preview(picture: Image.Image) -> Image.Image:
    small = picture.convert("RGB")
    small.thumbnail((PREVIEW, PREVIEW))
    return small
