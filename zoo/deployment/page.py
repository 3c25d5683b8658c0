"""A page to try an entry on: a picture is dropped, and the tasks that are chosen say what they see in it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from zoo.catalog.task import Task
from zoo.datasets import open_image
from zoo.drawing.answers import draw_answer
from zoo.errors import DataError, OptionError, extra
from zoo.kinds import get_kind
from zoo.kinds.base import DenseKind, LabelKind, main_output
from zoo.models.multitask import MultiTaskModel

ALL = "all tasks"
TOP = 3  # classes that are shown
LARGEST = 25_000_000  # bytes of a picture that is taken
PREVIEW, WIDTH = 512, 280  # pixels, at most, of the picture's longer side on the page; at least, of an answer


class Answering:
    """What the tasks of a model say of pictures, for a page.

    Raises:
        OptionError: the model takes clips, which a page cannot show.
    """

    def __init__(self, model: MultiTaskModel) -> None:
        self.model = model
        if clips := [name for name in model.tasks if model.task(name).preprocessing.frames]:
            raise OptionError(f"{', '.join(clips)} is asked of clips, and the page takes pictures: use `zoo predict`.")
        for name in model.tasks:  # the first pass of a task is looked at closely, and takes longer
            self._outputs(name, Image.new("RGB", (64, 64), "gray"))

    def __call__(self, picture: Image.Image, task: str, folder: Path) -> tuple[dict[str, float] | str, float]:
        """The classes with their probabilities, or the file of a map, drawn into `folder`; and seconds of the pass."""
        known = self.model.task(task)
        outputs, seconds = self._outputs(task, picture)
        kind = get_kind(known.kind)
        if isinstance(kind, DenseKind):
            return str(draw_answer(known, kind.answer(outputs)[0].numpy(), folder / f"{task}.png")), seconds
        assert isinstance(kind, LabelKind)
        shares = kind.probabilities(outputs[0]).tolist()
        return dict(zip(known.classes, shares, strict=True)), seconds

    def _outputs(self, task: str, picture: Image.Image) -> tuple[Tensor, float]:
        inputs = self.model.transforms(task)(picture)[None]
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
    drawn = tempfile.TemporaryDirectory(prefix="zoo-")  # which goes when the page does

    def answers(file: str | None, chosen: str) -> list[Any]:
        """What a picture and a task change on the page: what is told, preview, table, and each task's answer."""
        nothing = [gr.update(value=None, visible=chosen in (ALL, each)) for each in names]
        if file is None:
            return ["No picture yet.", None, None, *nothing]
        try:
            picture = open_image(Path(file))
        except DataError:
            return [f"**{Path(file).name} cannot be read as a picture.**", None, None, *nothing]
        found, rows = [], []
        for each in names:
            if chosen not in (ALL, each):
                found.append(gr.update(value=None, visible=False))
                continue
            answer, seconds = answering(picture, each, Path(tempfile.mkdtemp(dir=drawn.name)))
            found.append(gr.update(value=answer, visible=True))
            rows.append([each, f"{1000 * seconds:.1f}", f"{model.count_parameters(each).per_task:,}"])
        told = f"{Path(file).name}, {picture.width}×{picture.height} pixels"
        return [told, _preview(picture), rows, *found]

    with gr.Blocks(title=name, analytics_enabled=False, delete_cache=(3600, 3600)) as made:
        gr.Markdown(f"# {name}\n{_summary(model)}")
        with gr.Row():
            with gr.Column():
                file = gr.File(label="Drop a picture", height=120)
                task = gr.Radio([*names, ALL] if len(names) > 1 else names, value=names[0], label="Task")
                told = gr.Markdown(answers(None, names[0])[0], elem_id="told")
                preview = gr.Image(label="What was dropped", interactive=False, buttons=[])
            with gr.Column(scale=2):
                with gr.Row():
                    shown = [_place(gr, model.task(each), visible=each == names[0]) for each in names]
                table = gr.Dataframe(
                    headers=["task", "ms for the pass", "own parameters"], interactive=False, buttons=[]
                )
        kept = gr.State(None)  # the picture, when the place for the next one is free again
        shown_last = [told, preview, table, *shown]
        file.upload(lambda name: [None, name], file, [file, kept], show_progress="hidden").then(
            answers, [kept, task], shown_last, show_progress="hidden"
        )
        task.change(answers, [kept, task], shown_last, show_progress="hidden")
    made.drawn = drawn
    return made


def serve(made: Any, host: str, port: int | None, wait: bool = True) -> str:
    """Serve a page, to this machine alone unless `host` says otherwise; its address, where it does not wait."""
    import gradio as gr

    _, address, _ = made.launch(
        server_name=host, server_port=port, share=False, prevent_thread_lock=not wait, show_error=True, ssr_mode=False,
        max_file_size=LARGEST, footer_links=[], theme=gr.themes.Default(font=["sans-serif"], font_mono=["monospace"]),
    )  # fmt: skip
    return str(address)


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
