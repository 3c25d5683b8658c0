"""What is kept of a registry gives what its YAML gives, or is not believed; it is never an error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zoo.catalog import index
from zoo.catalog import registry as registries
from zoo.catalog.registry import Registry
from zoo.errors import WeightsError
from zoo.storage import resources

TEXT = """format: 1
pins: {timm/x: {uri: "hf://timm/x@COMMIT/model.safetensors", sha256: "ZEROS", size: 7}}
backbones:
  zoo/resnet20@mine: {benchmark: shapes, task: real, recipe: shapes/pretrain, parameters: 5}
entries:
  one:
    backbone: zoo/resnet20@mine
    method: {name: ftn, rank: 3}
    benchmark: shapes
    classes: {sketch: 12}
    recipe: shapes/ftn
    parameters: {backbone: 5, per_task: 2, by_task: {sketch: 2}}
    weights:
      sketch: {uri: "file:a", sha256: "ZEROS", size: 7}
    reported: {source: "a paper", figures: {sketch: 88}, mean: 88.0}
""".replace("COMMIT", 40 * "a").replace("ZEROS", 64 * "0")


def write(folder: Path, text: str = TEXT) -> Path:
    file = folder / "registry.yaml"
    file.write_text(text)
    return file


def contents(registry: Registry) -> object:
    return registry._entries, registry._backbones, registry.pins


def parsed(file: Path) -> object:
    """What the YAML alone says."""
    return contents(Registry(*registries._parsed(file.read_text(), file)))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The registries whose YAML is read."""
    read: list[Path] = []
    real = registries._parsed
    monkeypatch.setattr(registries, "_parsed", lambda text, path: read.append(path) or real(text, path))
    return read


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry that came with the code, and its index beside it."""
    file = write(tmp_path)
    registries.write_index(file)
    monkeypatch.setattr(resources, "registry_file", lambda: file)
    return file


@pytest.mark.parametrize("file", [resources.registry_file(), None], ids=["the zoo's", "one's own"])
def test_the_index_gives_what_the_yaml_gives(file: Path | None, tmp_path: Path, counted: list[Path]) -> None:
    file = file or write(tmp_path)
    first, second = Registry.read(file), Registry.read(file)
    assert counted == [file]
    assert contents(first) == contents(second) == parsed(file)


def test_the_index_beside_the_packages_registry_is_used(packaged: Path, counted: list[Path]) -> None:
    assert contents(Registry.read(packaged)) == parsed(packaged)
    assert counted == [packaged]  # by this test alone


def test_an_index_beside_any_other_registry_is_not_believed(tmp_path: Path) -> None:
    file = write(tmp_path)
    known = parsed(file)
    entries = [replace(entry, note="something else") for entry in Registry.read(file).entries()]
    index.save(index.key_of(file.read_bytes()), entries, [], {}, index.packaged_index(file))
    assert contents(Registry.read(file)) == contents(Registry.read(tmp_path)) == known


def test_a_changed_registry_is_read_anew(tmp_path: Path, packaged: Path) -> None:
    Registry.read(packaged)
    changed = write(tmp_path, TEXT.replace("rank: 3", "rank: 4"))
    assert Registry.read(changed).entry("one").method["rank"] == 4


def test_an_index_of_other_code_is_not_believed(
    tmp_path: Path, counted: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path)
    Registry.read(file)
    code = tmp_path / "catalog"
    code.mkdir()
    monkeypatch.setattr(index, "__file__", str(code / "index.py"))
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "files.py").write_text("")
    Registry.read(file)
    assert counted == [file, file]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_damaged_index_is_not_believed(packaged: Path, data: st.DataObject) -> None:
    """Wherever it was cut or altered."""
    file, beside = packaged, index.packaged_index(packaged)
    expected = parsed(file)
    registries.write_index(file)
    whole = beside.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    altered = bytearray(whole)
    altered[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]))
    for content in (bytes(altered), whole[:place], whole + whole[place:], b""):
        beside.write_bytes(content)
        (cached := index._cached(index.key_of(file.read_bytes()))).parent.mkdir(parents=True, exist_ok=True)
        cached.write_bytes(content)
        assert contents(Registry.read(file)) == expected


def test_an_index_that_cannot_be_written_is_no_error(
    tmp_path: Path, counted: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path)
    (tmp_path / "taken").write_text("a file, and no folder")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "taken"))
    assert contents(Registry.read(file)) == contents(Registry.read(file)) == parsed(file)


@pytest.mark.parametrize("value", ["2024-01-02", "{1: 2}", ".nan", ".inf", "!!binary aGk="])
def test_options_that_json_does_not_have_stay_as_they_are(value: str, tmp_path: Path) -> None:
    file = write(tmp_path, TEXT.replace("rank: 3", f"rank: 3, odd: {value}"))
    first, second = (Registry.read(file).entry("one").method["odd"] for _ in range(2))
    assert (repr(first), type(first)) == (repr(second), type(second))


def test_a_registry_with_mistakes_has_no_index(tmp_path: Path) -> None:
    file = write(tmp_path, TEXT.replace("rank: 3", "rank: 0"))
    for _ in range(2):
        with pytest.raises(Exception, match=r"method\.rank must be a whole number"):
            Registry.read(file)


def test_without_the_codes_own_files_there_is_no_index(
    tmp_path: Path, counted: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "__file__", str(tmp_path / "archive" / "catalog" / "index.py"))
    file = write(tmp_path)
    assert contents(Registry.read(file)) == parsed(file)
    assert counted == [file, file]


def test_a_wheels_index_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path, TEXT.replace("rank: 3", "rank: 3, odd: {1: 2}"))
    with pytest.raises(WeightsError, match="There is no index of"):
        registries.write_index(file)


def test_the_cache_keeps_the_indices_that_are_used(tmp_path: Path) -> None:
    used = write(tmp_path)
    Registry.read(used)
    kept = index._cached(index.key_of(used.read_bytes()))
    for number in range(index.KEPT + 5):
        (tmp_path / str(number)).mkdir()
        other = write(tmp_path / str(number), TEXT.replace("rank: 3", f"rank: {number + 4}"))
        Registry.read(other)
        Registry.read(used)
    assert kept.is_file()
    assert len(list(kept.parent.iterdir())) == index.KEPT
