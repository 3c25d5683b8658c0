"""The page to try an entry on, in a browser without a window. Draws the picture of docs with `python -m`."""

from __future__ import annotations

import base64
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright
from sklearn.datasets import load_sample_image
from torchvision.transforms.functional import to_pil_image

import zoo
from tests.export.test_shared import model_of
from zoo.catalog.registry import default_registry
from zoo.catalog.store import at_hand, stored_adapter
from zoo.datasets import benchmark_of
from zoo.deployment.page import ALL, Answering
from zoo.errors import OptionError

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
DROP = """async ([content, name]) => {
    const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], name));
    const target = document.querySelector('input[type=file]').closest('button, div[role=button], label, .wrap')
        || document.querySelector('input[type=file]').parentElement;
    for (const kind of ['dragenter', 'dragover', 'drop'])
        target.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
}"""


@contextmanager
def browsed(name: str, *options: str) -> Iterator[tuple[Page, list[str]]]:
    """`zoo app NAME` in a browser, and the addresses elsewhere that the page asks for."""
    command = [sys.executable, "-m", "zoo", "app", name, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout
        line = next(line for line in served.stdout if "local URL" in line)
        elsewhere: list[str] = []
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
                shown = browser.new_page(viewport={"width": 1200, "height": 760})
                shown.on("request", lambda asked: "127.0.0.1" in asked.url or elsewhere.append(asked.url))
                shown.goto(line.split()[-1])
                shown.wait_for_selector("input[type=file]", state="attached")
                yield shown, elsewhere
                browser.close()
        finally:
            served.terminate()


def drop(shown: Page, file: Path) -> None:
    """Drop a file as one does with a mouse."""
    shown.evaluate(DROP, [base64.b64encode(file.read_bytes()).decode(), file.name])


def picture(entry: str, task: str, folder: Path) -> tuple[Path, str]:
    """The first test image that a task has right, as a file, and its class."""
    model, splits = zoo.load(entry), benchmark_of(default_registry().entry(entry)).splits(task, None)
    for image, label in (splits.test[i] for i in range(50)):
        with torch.no_grad():
            if int(model(model.transforms(task)(image)[None], task=task).argmax()) == label:
                to_pil_image(image).save(folder / "dropped.png")
                return folder / "dropped.png", splits.classes[label]
    raise AssertionError("none is right")


@needs_browser
@pytest.mark.long
def test_a_picture_is_dropped_and_the_right_class_appears(tmp_path: Path) -> None:
    entry = "resnet20-ftn-r8-shapes"
    file, label = picture(entry, "sketch", tmp_path)
    with browsed(entry) as (shown, elsewhere):
        shown.get_by_label("sketch", exact=True).check()
        drop(shown, file)
        answers = shown.get_by_test_id("label-output-value")
        expect(answers).to_have_count(1)
        expect(answers).to_have_text(label)
        expect(shown.locator("#told")).to_contain_text("dropped.png, 32×32 pixels")
        shown.get_by_label(ALL, exact=True).check()
        expect(answers).to_have_count(6)
        expect(shown.get_by_role("gridcell", name="quickdraw")).to_be_visible()
        wrong = tmp_path / "notes.png"
        wrong.write_text("no picture")
        shown.set_input_files("input[type=file]", wrong)
        expect(shown.locator("#told")).to_contain_text("notes.png cannot be taken")
        expect(answers).to_have_count(0)
    assert not elsewhere


@needs_browser
def test_maps_are_drawn(tmp_path: Path) -> None:
    entry = "resnet20-ftn-r8-rooms"
    Image.new("RGB", (64, 48), "orange").save(tmp_path / "room.png")
    with browsed(entry) as (shown, _):
        shown.get_by_label(ALL, exact=True).check()
        drop(shown, tmp_path / "room.png")
        expect(shown.locator("img")).to_have_count(5)  # four maps, and the picture itself


def test_what_a_page_says_is_what_the_model_says() -> None:
    model = model_of("ftn")
    image = Image.effect_noise((16, 16), 60).convert("RGB")
    answer, seconds = Answering(model)(image, "a")
    with torch.no_grad():
        expected = model.fuse("a")(model.transforms("a")(image)[None])[0].softmax(0)
    assert isinstance(answer, dict) and list(answer) == list(model.task("a").classes) and seconds > 0
    torch.testing.assert_close(torch.tensor(list(answer.values())), expected, atol=1e-5, rtol=1e-4)


def test_an_address_that_cannot_be_listened_on_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for options in (["--port", port], ["--host", "300.1.1.1"]):
            command = [sys.executable, "-m", "zoo", "app", "resnet20-bn-shapes", "--task", "sketch", *options]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 2 and "Cannot listen on" in done.stderr and "--port or --host" in done.stderr


def test_tasks_at_hand_are_those_with_a_file(tmp_path: Path) -> None:
    entry = default_registry().entry("efficientnet_lite0-ftn-r4-pictures")
    assert set(at_hand(entry)) == set(at_hand(entry, "published")) == set(entry.weights or ()) < set(entry.tasks)
    stored_adapter(entry.name, "birds").parent.mkdir(parents=True)
    stored_adapter(entry.name, "birds").write_bytes(b"")
    assert set(at_hand(entry)) == {"birds", *(entry.weights or ())} and "birds" not in at_hand(entry, "published")
    (tmp_path / "things.safetensors").write_bytes(b"")
    assert at_hand(entry, tmp_path) == ["things"]


def test_clips_are_told_to_be_none() -> None:
    with pytest.raises(OptionError, match="zoo predict"):
        Answering(zoo.load("lstm-trmtl_4-clips"))


if __name__ == "__main__":  # the picture of the README: python -m tests.deployment.test_page docs/page.png
    photo = Path("flower.png")
    Image.fromarray(load_sample_image("flower.jpg")).save(photo)
    with browsed("efficientnet_lite0-ftn-r4-pictures", "--task", "objects", "--task", "weather") as (tab, _):
        tab.get_by_label(ALL, exact=True).check()
        drop(tab, photo)
        expect(tab.get_by_test_id("label-output-value")).to_have_count(2)
        tab.wait_for_timeout(1000)
        tab.screenshot(path=sys.argv[1])
    photo.unlink()
