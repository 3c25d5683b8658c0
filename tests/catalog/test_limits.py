"""What would fill the memory or the stack is refused before it does."""

from __future__ import annotations

import pickletools
import tempfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from zoo.backbones.weights import restricted
from zoo.catalog import yaml_files
from zoo.catalog.yaml_files import DEEPEST, MOST_NODES, load_yaml, parse_yaml
from zoo.deployment.peft_files import CONFIG
from zoo.errors import ConfigError, WeightsError, ZooError
from zoo.storage import files, resources


def laughs(levels: int) -> str:
    """Aliases of aliases: ten times as many nodes with each line."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join(10 * [f'*a{i - 1}'])}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        laughs(9), 100_000 * "[" + 100_000 * "]", 5_000 * "- " + "x", 3_000 * "{a: " + "1" + 3_000 * "}",
        "a: &a [*a]", "a: &a {b: [*a]}", "a: *b\nb: &b 1",
        "\n".join(["a0: &a0 [x]"] + [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 500)]),
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_yaml_that_is_too_much(text: str) -> None:
    tracemalloc.start()
    with pytest.raises(ConfigError):
        parse_yaml(text, "registry.yaml")
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


def test_aliases_in_measure_are_read() -> None:
    assert parse_yaml("a: &x {k: [1, 2]}\nb: *x\nc: [*x, *x]", "") == yaml.safe_load(
        "a: &x {k: [1, 2]}\nb: *x\nc: [*x, *x]"
    )
    assert parse_yaml(laughs(4), "")["a3"][9][9][9][9] == "x"
    deep = (DEEPEST - 2) * "[" + (DEEPEST - 2) * "]"
    assert parse_yaml(deep, "") == yaml.safe_load(deep)
    assert load_yaml(resources.registry_file())["format"] == 1


data = st.recursive(
    st.integers() | st.booleans() | st.text("abcdef", max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(data)
@settings(deadline=None, max_examples=200)
def test_what_is_counted_is_what_is_made(made: Any) -> None:
    """The nodes of a text, against those of the data that yaml's own loader makes of it."""

    def nodes(value: Any) -> int:
        if isinstance(value, dict):
            return 1 + sum(nodes(key) + nodes(each) for key, each in value.items())
        return 1 + sum(map(nodes, value)) if isinstance(value, list) else 1

    text = yaml.safe_dump({"one": made, "two": [made, made]})  # with aliases for what stands several times
    count = nodes(yaml.safe_load(text))
    limit = yaml_files.MOST_NODES
    try:
        yaml_files.MOST_NODES = count
        yaml_files._check_size(text)
        yaml_files.MOST_NODES = count - 1
        with pytest.raises(ValueError, match="nodes"):
            yaml_files._check_size(text)
    finally:
        yaml_files.MOST_NODES = limit
    assert limit == MOST_NODES


def test_a_text_that_is_too_long(tmp_path: Path) -> None:
    file = tmp_path / "registry.yaml"
    with open(file, "wb") as long:
        long.truncate(files.LONGEST_TEXT + 1)
    with pytest.raises(ConfigError, match="and may have 20,000,000"):
        zoo.Registry.read(file)
    (tmp_path / "peft").mkdir()
    with open(tmp_path / "peft" / CONFIG, "wb") as long:
        long.truncate(files.LONGEST_TEXT + 1)
    with pytest.raises(ZooError, match="and may have 20,000,000"):
        zoo.load_peft(tmp_path / "peft", torch.nn.Linear(2, 2))
    (tmp_path / "peft" / CONFIG).write_text('{"a": ' + 100_000 * "[" + 100_000 * "]" + "}")
    with pytest.raises(WeightsError, match="does not read"):
        zoo.load_peft(tmp_path / "peft", torch.nn.Linear(2, 2))


def test_a_checkpoint_that_would_grow(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, tmp_path / "good.pth")
    assert torch.equal(restricted(tmp_path / "good.pth")["w"], torch.zeros(1000))
    with (
        zipfile.ZipFile(tmp_path / "good.pth") as good,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in good.namelist():
            bomb.writestr(name, good.read(name))
    with pytest.raises(WeightsError, match="is compressed or a folder"):
        restricted(tmp_path / "bomb.pth")


@given(st.lists(st.sampled_from([each.code.encode("latin1") for each in pickletools.opcodes]), max_size=6))
def test_a_program_that_is_no_checkpoint_gets_a_sentence(codes: list[bytes]) -> None:
    """Of torch's older format: for a machine with a stack, on which it fails in any way."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.pth"
        file.write_bytes(b"\x80\x02" + b"".join(codes))
        with pytest.raises(WeightsError):
            restricted(file)


def test_any_bit_of_a_checkpoint_is_refused_or_nothing_hangs_on_it(tmp_path: Path) -> None:
    """Of a zip that states its content in several places, of which torch looks at some."""
    file, expected = tmp_path / "net.pth", torch.arange(6.0)
    torch.save({"w": expected}, file)
    whole = file.read_bytes()
    places = [
        place for begin in (0, whole.index(b"PK\x01\x02")) for place in range(begin, min(begin + 900, len(whole)))
    ]
    for bit in (8 * place + number for place in places for number in range(8)):
        altered = bytearray(whole)
        altered[bit // 8] ^= 1 << bit % 8
        file.write_bytes(altered)
        try:
            found = restricted(file)
        except WeightsError:
            continue
        assert list(found) == ["w"]
        assert torch.equal(found["w"], expected), bit
