"""What a classifier gets wrong, against scikit-learn's confusion matrix and plain counting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import confusion_matrix

from tests.conftest import write_images
from tests.training.test_runs import zoo
from zoo.catalog.task import Task
from zoo.datasets import get_benchmark
from zoo.errors import OptionError
from zoo.verification.mistakes import Answers

CLASSES = ("ant", "bee", "cow", "dog")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60), st.integers(1, 7))
def test_counts_are_those_of_scikit_learn(pairs: list[tuple[int, int]], batch: int) -> None:
    truth, answered = torch.tensor(pairs).T
    answers = Answers(Task.of("t", CLASSES))
    for some, said in zip(truth.split(batch), answered.split(batch), strict=True):
        answers.take(torch.nn.functional.one_hot(said, 4).float(), some)
    assert answers.confusion().tolist() == confusion_matrix(truth, answered, labels=range(4)).tolist()
    rows = {row["class"]: row for row in answers.by_class()}
    for label, name in enumerate(CLASSES):
        own = [said for known, said in pairs if known == label]
        assert rows[name]["images"] == len(own)
        expected = round(100 * own.count(label) / len(own), 1) if own else None
        assert rows[name]["right %"] == expected
    wrong = sum(a != b for a, b in pairs)
    assert sum(pair["images"] for pair in answers.worst_pairs(most=12)) == wrong
    assert [p["images"] for p in answers.worst_pairs()] == sorted(
        (p["images"] for p in answers.worst_pairs()), reverse=True
    )


def test_the_sheet_holds_the_wrong_answers_the_most_certain_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = get_benchmark("folder").splits("t", write_images(tmp_path, {"t": list(CLASSES)})).test
    answers = Answers(Task.of("t", CLASSES))
    labels = torch.tensor([images[i][1] for i in range(len(images))])  # type: ignore[arg-type]
    outputs = torch.nn.functional.one_hot(labels, 4).float()
    outputs[1], outputs[5] = torch.tensor([0.0, 0, 3, 0]), torch.tensor([9.0, 0, 0, 0])  # an ant, and a bee
    answers.take(outputs, labels)
    drawn: list[object] = []
    monkeypatch.setattr("zoo.verification.mistakes.draw_mistakes", lambda mistakes, *_: drawn.extend(mistakes))
    assert "2 of 2 wrong answers" in answers.draw_mistakes(images, tmp_path / "t.png")
    assert [(m.truth, m.answer) for m in drawn] == [("bee", "ant"), ("ant", "cow")]  # type: ignore[attr-defined]
    assert drawn[0].image.tobytes() == images[5][0].tobytes()  # type: ignore[attr-defined]


def test_eval_tells_what_is_mixed_up_and_draws_it(tmp_path: Path) -> None:
    words = ("eval", "resnet20-ftn-r1-shapes", "--task", "infograph")
    where = ("-o", str(tmp_path / "confusion"), "--errors", str(tmp_path / "wrong"))
    told = zoo(*words, "--confusion", *where)
    assert "by class" in told
    assert "mixed up most often" in told
    for file in ("confusion.png", "wrong/infograph.png"):
        with Image.open(tmp_path / file) as picture:
            assert min(picture.size) > 150
    accuracy, mixed = json.loads(zoo(*words, "--confusion", "--json"))
    counts = torch.tensor(mixed["confusion"])
    assert accuracy["accuracy %"] == pytest.approx(100 * float(counts.trace() / counts.sum()), abs=0.01)


def test_maps_have_no_classes_to_mix_up() -> None:
    with pytest.raises(OptionError, match="for classifiers"):
        Answers(Task.of("depth", 1, kind="depth"))
