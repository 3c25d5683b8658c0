"""What joint models are trained on: the publishers' layouts, the twins, clips, attributes, and taking turns."""

from __future__ import annotations

import hashlib
import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from tests.datasets import joint_layouts, layouts
from zoo.catalog.recipe import Optimizer, Recipe
from zoo.catalog.task import Preprocessing, Task
from zoo.cli.base import main
from zoo.datasets import Images, Splits, get_benchmark, some_of
from zoo.datasets.twins import clips, digits
from zoo.datasets.twins.shapes import CLASSES, render
from zoo.datasets.twins.shapes2 import HALVES
from zoo.datasets.video import open_video
from zoo.errors import DataError, OptionError, TrainingError
from zoo.kinds import get_kind
from zoo.training.batches import Turns

# -- the publishers' layouts ------------------------------------------------------------------------------------------

EXPECTED = {  # classes, training and test images of each task of the small folders
    "mnist_odd_even": {"odd": (5, 10, 5), "even": (5, 10, 5)},
    "omniglot5": dict.fromkeys("abcde", (10, 20, 20)),
    "omniglot_mnist": {"omniglot": (10, 20, 20), "mnist": (10, 20, 10)},
    "cifar10_3": {"objects": (4, 20, 4), "mammals": (4, 20, 4), "others": (2, 10, 2)},
    "ucf11": {"five": (5, 5, 5), "six": (6, 6, 6)},
    "officehome": dict.fromkeys(("art", "clipart", "product", "real_world"), (65, 68, 1)),
    "adience_celeba": {"adience": (8, 32, 8), "celeba": (40, 3, 2)},
}


@pytest.mark.parametrize("name", joint_layouts.BENCHMARKS)
def test_the_publishers_layouts_are_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, benchmark = layouts.make(name, tmp_path / "data", monkeypatch), get_benchmark(name)
    found = {}
    for task in benchmark.tasks(root):
        splits = benchmark.splits(task, root)
        found[task] = len(splits.classes), len(splits.train), len(splits.test)  # type: ignore[arg-type]
        labels = [splits.train[i][1] for i in range(len(splits.train))]  # type: ignore[arg-type]
        if task != "celeba":
            assert set(labels) == set(range(len(splits.classes)))
    assert found == EXPECTED[name]
    with pytest.raises(DataError, match="--data-root"):
        benchmark.splits(next(iter(found)), None)
    with pytest.raises(DataError, match="Expected layout"):
        benchmark.splits(next(iter(found)), tmp_path)


def test_cifars_classes_go_to_their_tasks(tmp_path: Path) -> None:
    root = joint_layouts.cifar10(tmp_path)
    splits = get_benchmark("cifar10_3").splits("others", root)
    records = np.fromfile(root / "cifar-10-batches-bin" / "test_batch.bin", np.uint8).reshape(10, 3073)
    names = (root / "cifar-10-batches-bin" / "batches.meta.txt").read_text().split()
    for image, label in (splits.test[i] for i in range(2)):
        expected = records[names.index(splits.classes[label]), 1:].reshape(3, 32, 32).transpose(1, 2, 0)
        assert np.array_equal(np.asarray(image), expected)
    (root / "cifar-10-batches-bin" / "batches.meta.txt").write_text("\n".join(names).replace("frog", "toad"))
    with pytest.raises(DataError, match="names no class frog"):
        get_benchmark("cifar10_3").splits("others", root)


def test_mnists_digits_are_those_of_its_files(tmp_path: Path) -> None:
    root = joint_layouts.mnist(tmp_path)
    even = get_benchmark("mnist_odd_even").splits("even", root)
    assert even.classes == ("0", "2", "4", "6", "8")
    raw = np.frombuffer((root / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()[16:], np.uint8)
    assert np.array_equal(np.asarray(even.test[3][0]), raw.reshape(10, 28, 28)[6])
    (root / "MNIST" / "raw" / "t10k-images-idx3-ubyte").write_bytes(b"nothing")
    with pytest.raises(DataError, match="is damaged"):
        get_benchmark("mnist_odd_even").splits("even", root)
    (root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"There is no .*t10k-labels"):
        get_benchmark("mnist_odd_even").splits("even", root)


def test_omniglots_test_drawings_are_the_last_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = joint_layouts.omniglot(tmp_path, monkeypatch)
    splits = get_benchmark("omniglot5").splits("e", root)
    assert splits.classes[0] == "Alphabet_10"
    assert {path.stem[-2:] for path, _ in splits.test.items} == {"03", "04"}  # type: ignore[attr-defined]
    (root / "omniglot-py" / "images_evaluation.zip").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"images_evaluation\.zip .* missing or altered"):
        get_benchmark("omniglot5").splits("a", root)


def test_adiences_lists_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = joint_layouts.adience_celeba(tmp_path, monkeypatch)
    file = root / "adience" / "fold_2_data.txt"
    good = file.read_text()
    file.write_text(good + "someone\tonly\n")
    with pytest.raises(DataError, match=r"fold_2_data\.txt, line 11: .* has not the fields user, image, face, age"):
        get_benchmark("adience_celeba").splits("adience", root)
    file.write_text(good + "../..\tx.jpg\t1\t(0, 2)\tf\n")
    with pytest.raises(DataError, match="names a path outside"):
        get_benchmark("adience_celeba").splits("adience", root)


def test_celebas_attributes_are_zeros_and_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = joint_layouts.adience_celeba(tmp_path, monkeypatch)
    splits = get_benchmark("adience_celeba").splits("celeba", root)
    assert splits.classes[:2] == ("Attribute_0", "Attribute_1")
    rows = [line.split()[1:] for line in (root / "celeba" / "list_attr_celeba.txt").read_text().splitlines()[2:]]
    image, target = splits.test[1]
    assert image.size == (178, 218)
    assert target.tolist() == [float(value == "1") for value in rows[4]]


def test_clips_are_decoded_evenly_spread(tmp_path: Path) -> None:
    clip = joint_layouts.video(tmp_path / "clip.avi", frames=5)
    frames = open_video(clip, 3)
    assert (frames.shape, frames.dtype) == ((3, 3, 24, 32), torch.uint8)
    assert frames.float().mean((1, 2, 3)).tolist() == pytest.approx([0, 80, 160], abs=6)
    assert len(open_video(clip, 12)) == 12
    (tmp_path / "broken.avi").write_bytes(b"RIFF")
    for name, words in (("broken.avi", "does not decode"), ("none.avi", "There is no clip")):
        with pytest.raises(DataError, match=words):
            open_video(tmp_path / name, 3)


def test_a_folder_without_test_clips_is_refused(tmp_path: Path) -> None:
    root = joint_layouts.ucf(tmp_path)
    for group in (root / "action_youtube_naudio").glob("*/v_*_21"):
        group.rename(group.with_name(group.name.replace("_21", "_09")))
    with pytest.raises(DataError, match="none to test on"):
        get_benchmark("ucf11").splits("five", root)


def test_zoo_data_check_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = layouts.make("omniglot_mnist", tmp_path, monkeypatch)
    done = CliRunner().invoke(main, ["data", "check", "omniglot_mnist", "--data-root", str(root), "--json"])
    assert done.exit_code == 1
    assert "mnist: classes, train, test should be 10, 60000, 10000 (official)" in done.output
    assert "omniglot: classes" not in done.output  # whose counts are not published by split
    rows = json.loads(done.stdout[: done.stdout.rindex("]") + 1])
    assert [row["train"] for row in rows] == [20, 20]


# -- the twins --------------------------------------------------------------------------------------------------------


def test_the_digits_are_scikit_learns() -> None:
    known = load_digits()
    odd, even = (get_benchmark("digits").splits(task, None) for task in ("odd", "even"))
    assert len(odd.train) + len(odd.test) + len(even.train) + len(even.test) == 1797  # type: ignore[arg-type]
    place, label = even.test.items[4]  # type: ignore[attr-defined]
    image, found = even.test[4]
    assert known.target[place] == int(even.classes[label])
    assert found == label
    np.testing.assert_allclose(image[0].numpy() / 255, known.images[place] / 16, atol=1 / 255)
    places = [{place for place, _ in part.items} for s in (odd, even) for part in (s.train, s.test)]  # type: ignore[attr-defined]
    assert len(set.union(*places)) == 1797


def test_clips_are_the_same_on_every_machine_and_move() -> None:
    pixels = [clips.render(task, "test", i) for task in clips.MOTIONS for i in range(22)]
    digest = hashlib.sha256(b"".join(clip.tobytes() for clip in pixels)).hexdigest()
    assert digest[:16] == "72dbe26f5fca267b"
    assert len({clip.tobytes() for clip in pixels}) == 44
    splits = get_benchmark("clips").splits("five", None)
    grid = torch.arange(16.0)

    def centre(index: int, axis: int) -> Tensor:
        """Of the brightest pixels in each frame, along one axis."""
        clip, label = splits.train[index]
        assert label == index % 5
        ink = (clip[:, 0] > 150).float()
        return (ink.sum(3 - axis) * grid).sum(1) / ink.sum((1, 2)).clamp(min=1)

    for index in range(0, 50, 5):
        assert centre(index, 2)[-1] > centre(index, 2)[0] + 2  # left to right
        assert centre(index + 1, 2)[-1] < centre(index + 1, 2)[0] - 2
        assert centre(index + 2, 1)[-1] > centre(index + 2, 1)[0] + 2  # downwards


def test_shapes_in_two_are_the_shapes_of_clipart() -> None:
    splits = get_benchmark("shapes2").splits("round", None)
    assert splits.classes == HALVES["round"]
    image, label = splits.test[7]
    place = splits.test.items[7][0]  # type: ignore[attr-defined]
    assert CLASSES[place % 12] == splits.classes[label]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), render("clipart", "test", place))


@pytest.mark.parametrize("name", ["digits", "clips", "shapes2"])
def test_twins_name_their_tasks(name: str) -> None:
    benchmark = get_benchmark(name)
    with pytest.raises(LookupError, match=benchmark.tasks(None)[0]):
        benchmark.splits(benchmark.tasks(None)[0] + "s", None)


# -- attributes -------------------------------------------------------------------------------------------------------


def test_attributes_have_the_loss_and_the_metric_of_plain_torch() -> None:
    kind = get_kind("attributes")
    logits, targets = torch.randn(7, 5), torch.randint(0, 2, (7, 5)).float()
    recipe = Recipe("x", 1, 1, Optimizer("sgd", 0.1))
    p = logits.sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    torch.testing.assert_close(kind.loss(logits, targets, recipe), expected)
    meter = kind.meter(5).set_dtype(torch.float64)
    for part in (slice(0, 3), slice(3, 7)):
        meter.update(*kind.compared(logits[part], targets[part]))
    right = ((p > 0.5) == (targets == 1)).double().mean()
    assert kind.figure(meter) == pytest.approx(100 * float(right))
    assert kind.right(logits, targets) == (round(float(right) * 35), 35)
    assert Task.of("t", 5, kind="attributes").metric.unit == "%"


def test_clips_go_through_the_transform_frame_by_frame() -> None:
    to = Preprocessing(6, None, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), frames=4)
    clip = torch.randint(0, 256, (4, 3, 10, 12), dtype=torch.uint8)
    whole = to.transform()(clip)
    assert whole.shape == to.input_size == (4, 3, 6, 6)
    image = Preprocessing(6, None, to.mean, to.std).transform()
    for frame, expected in zip(whole, clip, strict=True):
        torch.testing.assert_close(frame, image(expected))
    assert Preprocessing.from_data(json.loads(json.dumps(to.__dict__))) == to
    with pytest.raises(OptionError, match="frames >= 1"):
        Preprocessing(6, None, frames=0)


# -- taking turns -----------------------------------------------------------------------------------------------------


class Numbers(Images):
    """Images that are as bright as their number, which is their target too."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("L", (4, 4), index), index


def turns(counts: dict[str, int], batch: int = 4) -> Turns:
    recipe = Recipe("x", 1, batch, Optimizer("sgd", 0.1), input=Preprocessing(4, None, (0.0,), (1.0,)))
    data = {task: Splits(("a", "b"), Numbers(count), Numbers(2)) for task, count in counts.items()}
    return Turns(data, dict.fromkeys(counts, recipe), Accelerator(cpu=True), 0)


def test_tasks_take_turns_and_small_ones_begin_again_in_a_new_order() -> None:
    feed = turns({"large": 24, "small": 8, "middle": 10})
    assert len(feed) == 18
    batches = list(feed.epoch(3))
    assert [task for task, _, _ in batches] == ["large", "small", "middle"] * 6
    seen = {task: [t.tolist() for name, _, t in batches if name == task] for task in ("large", "small", "middle")}
    assert sorted(chain.from_iterable(seen["large"])) == list(range(24))
    passes = [list(chain.from_iterable(seen["small"][i : i + 2])) for i in (0, 2, 4)]
    assert all(sorted(each) == list(range(8)) for each in passes)
    assert len({tuple(each) for each in passes}) == 3
    assert [len(batch) for batch in seen["middle"]] == [4, 4, 2, 4, 4, 2]
    again = [(task, targets.tolist()) for task, _, targets in feed.epoch(3)]
    assert again == [(task, targets.tolist()) for task, _, targets in batches]
    assert again != [(task, targets.tolist()) for task, _, targets in feed.epoch(4)]


def test_a_task_without_a_batch_is_named() -> None:
    with pytest.raises(TrainingError, match="no full batch of small"):
        turns({"large": 8, "small": 1})


def test_fewer_samples_are_part_of_more() -> None:
    data = get_benchmark("digits").splits("odd", None)
    few, more = some_of(data, 20, 1), some_of(data, 50, 1)
    assert set(few.train.indices) < set(more.train.indices)  # type: ignore[attr-defined]
    assert (len(few.train), few.test is data.test) == (20, True)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="9999 training images are asked for, and there are 608"):
        some_of(data, 9999, 1)
    assert len(digits.loaded()[1]) == 1797
