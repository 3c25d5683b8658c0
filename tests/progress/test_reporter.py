"""What long work says of the time that it takes."""

from __future__ import annotations

import pytest

from zoo.progress.reporter import Reporter, duration


def test_after_some_seconds_the_time_of_everything_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with Reporter("flowers", epochs=10, steps=12, later=80) as report:
        for step in range(12):
            clock[0] += 20 if step == 0 else 2  # the first takes longer, and says nothing of the others
            report.step(0, {"loss": 1.0, "accuracy": 50.0})
        report.epoch(0, {"loss": 1.0, "accuracy": 50.0})
    told = capsys.readouterr().err.splitlines()
    # after four steps, 116 of this training are left, and 80 of what follows
    assert told[0] == "flowers: 2000 ms a step: about 4 min more, 7 min for all that is to be trained"
    assert told[1].startswith("flowers: epoch 1/10  loss 1.000  train 50.0 %")
    assert len(told) == 2


@pytest.mark.parametrize(
    ("seconds", "words"), [(1, "1 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h")]
)
def test_times_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words
