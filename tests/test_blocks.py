"""What the documents tell one to type: every line that begins with `zoo`, and every piece of Python."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import zoo
from tests.conftest import write_images
from zoo.catalog.registry import Registry, default_registry
from zoo.cli.base import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Names that the documents give to what one makes oneself.
MADE = r"(NAME|zoo|resnet20-beside-shapes|efficientnet_lite0_imagenet-(ftn-r4|finetune|features)-\w+)"
WORDS = {  # placeholders, and what stands for them where a command is read
    "NAME": "resnet20-bn-shapes", "CHECKPOINT": "checkpoint", "timm/NAME": "timm/resnet18", "ARCHIVES": "archives",
    "PHOTO.jpg": "photo.jpg",
}  # fmt: skip


def commands(page: Path) -> list[list[str]]:
    """The words of each command of the zoo's in a page's blocks."""
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        if language in ("sh", ""):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line for line in lines if re.match(r"(torchrun .*-m )?zoo ", line)]
    return [shlex.split(re.sub(r"\[.*?\]|^torchrun .*?-m ", "", line), comments=True) for line in found]


ALL = [(page.name, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), ALL, ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_every_command_can_be_typed(
    page: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its options exist and take such values; the models that it names exist. Nothing is run."""
    monkeypatch.chdir(tmp_path)
    for folder in ("OUT", "DIR-adapters", "photos-adapters", "elsewhere"):
        Path(folder).mkdir()
        Registry().write(tmp_path / folder / "registry.yaml")
    command: click.Command = main
    for word in words[1:]:
        below = command.get_command(click.Context(command), word) if isinstance(command, click.Group) else None
        if below is None:
            break
        command = below
    called = []
    monkeypatch.setattr(command, "callback", lambda *_, **options: called.append(options))
    done = CliRunner().invoke(main, [WORDS.get(word, word) for word in words[1:]], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (options,) = called
    name = options.get("name") or options.get("source")
    if isinstance(name, str) and name and not re.fullmatch(MADE, name) and command.name != "convert":
        assert "/" in name or name in default_registry().names(), name


# Commands that are not run here, and why. All others are, on the page's own words.
ELSEWHERE = {
    r"--data-root DIR|ARCHIVES|--from archives|CHECKPOINT|DATA/": "need data sets or checkpoints; read above",
    r"resnet20-beside": "tests/test_documents.py adds that method and runs them",
    r"photos|DIR|OUT|elsewhere": "the test of from-folder-to-service.md runs the like",
    r"^zoo predict (zoo/efficientnet|efficientnet)": "tests/backbones/test_imported.py asks them of photographs",
    r"-o (whole|shared|all.onnx|adapters)$": "the test of deployment.md runs them",
    r"search-sharing|--rank auto": "tests/search runs them on a few images",
    r"^zoo train mlp|--retrain": "tests/verification trains that again",
    r"^zoo prune": "tests/search prunes two tasks in fewer steps",
    r"--fit|^zoo eval biggan|^zoo export biggan": "tests/deployment/test_pictures.py does the like in fewer steps",
}
QUICKER = {  # of words, so that it does not take long
    r"^zoo (bench|compare) .*": " --rounds 1",
    r"^zoo train resnet20-ftn-r8-shapes .*": " --max-steps 2",
    r"^zoo eval resnet20-ftn-r8-shapes": " --task sketch",
    r"^zoo eval resnet20-ftn-r8-rooms": " --task depth",
}
RUN = [
    (page, " ".join(map(shlex.quote, words)))
    for page, words in ALL
    if not any(re.search(pattern, " ".join(words)) for pattern in ELSEWHERE)
]


@pytest.mark.long
@pytest.mark.parametrize(("page", "line"), dict.fromkeys(RUN))
def test_commands_run(page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    for folder in ("docs", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    more = "".join(words for pattern, words in QUICKER.items() if re.search(pattern, line))
    done = CliRunner().invoke(main, shlex.split(line + more)[1:], catch_exceptions=False)
    default_registry.cache_clear()
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("page", ["dense-tasks", "seasons", "sharing", "transformers"])
def test_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small network that is at hand in place of a large one whose weights have to be fetched."""
    monkeypatch.chdir(tmp_path)
    model = zoo.load("vit_micro-lora-r4-shapes", task="sketch")
    zoo.save_peft(model, "sketch", tmp_path / "checkpoint", "zoo/vit_micro@shapes")
    text = (ROOT / "docs" / f"{page}.md").read_text()
    text = text.replace("timm/vit_base_patch32_clip_224.openai", "zoo/vit_micro@shapes")
    text = text.replace('"vit_base_patch32_clip_224.openai", pretrained=True', '"test_vit"')
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    exec("\n".join(blocks), names)
    assert len(blocks) >= 1


@pytest.mark.long
def test_the_way_from_a_folder_to_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's commands and its Python, one after another, on a few small pictures and two steps of training."""
    write_images(tmp_path / "photos", {"flowers": ["daisy", "rose", "tulip"], "weather": ["rain", "shine"]})
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    page = (ROOT / "docs" / "from-folder-to-service.md").read_text()
    shell = "\n".join(re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    shell = re.sub("^pip .*$", "", shell, flags=re.MULTILINE).replace("*.jpg", "*")
    shell = shell.replace("--image-size 160", "--image-size 32 --max-steps 2")
    places = {"ZOO_CACHE": str(tmp_path / "cache"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", "-euxc", shell]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | places, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "compared.png").is_file()
    assert {file.name for file in (tmp_path / "onnx").iterdir()} == {"flowers.onnx", "weather.onnx"}
    assert (tmp_path / "elsewhere" / "README.md").is_file()
    (python,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    python = python.replace("image_size=160", "image_size=32, max_steps=2").replace('"flowers": 17', '"flowers": 3')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_CACHE", places["ZOO_CACHE"])
    names: dict[str, object] = {}
    exec(python.replace('"weather": 4', '"weather": 2'), names)
    assert set(names["again"].tasks) == {"flowers", "weather"}  # type: ignore[attr-defined]


@pytest.mark.long
def test_the_forms_in_which_tasks_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's commands, and then its Python, which takes the words of one task from each form."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "deployment.md").read_text()
    for words in commands(ROOT / "docs" / "deployment.md"):
        line = " ".join(words[1:]).replace("--all-tasks", "--task sketch --task real")  # of six, to be quicker
        done = CliRunner().invoke(main, line.split(), catch_exceptions=False)
        assert done.exit_code == 0, done.output
    names: dict[str, Any] = {}
    found = {}
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    for number, block in enumerate(blocks):
        exec(block, names)
        found[number] = names["logits"]
    expected = names["model"].fuse("sketch")(torch.from_numpy(names["images"])).detach().numpy()
    for number in (0, 1, 3):
        np.testing.assert_allclose(found[number][0], expected[0], atol=1e-5 * float(np.abs(expected).max()))
    assert all(len(block.strip().splitlines()) <= 7 for block in blocks)


def test_small_files_print_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "small-files.md").read_text()
    (block,), (printed,) = (
        re.findall(rf"^```{kind}\n(.*?)^```", page, re.DOTALL | re.MULTILINE) for kind in ("python", "text")
    )
    exec(block, {})
    assert capsys.readouterr().out == printed
    assert (tmp_path / "sketch.safetensors").is_file()


def test_every_piece_of_python_is_run_somewhere() -> None:
    with_python = {page.name for page in PAGES if "```python" in page.read_text()}
    here = {"dense-tasks.md", "transformers.md", "from-folder-to-service.md", "deployment.md", "small-files.md"}
    assert with_python == here | {
        "seasons.md",
        "sharing.md",
        "README.md",
        "joint-networks.md",
        "adding-a-method.md",
    }  # tests/test_documents.py
