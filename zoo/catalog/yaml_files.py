"""YAML in and out: plain data alone, and no key twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from zoo.errors import ConfigError
from zoo.storage.files import read_text

DEEPEST, MOST_NODES = 60, 1_000_000  # of a text whose aliases are written out; the zoo's registry has 15,000 nodes
TEXT, MAPPING, SEQUENCE = (f"tag:yaml.org,2002:{name}" for name in ("str", "map", "seq"))


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader, quicker than yaml's own: it makes plain data only, and notes keys that stand twice."""

    def plain(self, node: yaml.Node) -> Any:
        """The data of a node. One that several aliases name is made once."""
        if isinstance(node, yaml.ScalarNode):
            return node.value if node.tag == TEXT else self.made_of(node)
        if id(node) in self.made:
            return self.made[id(node)]
        if isinstance(node, yaml.MappingNode) and node.tag == MAPPING:
            made: Any = {}
            self.made[id(node)] = made
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    self.problems.append(f"line {key.start_mark.line + 1}: a key must be plain text")
                elif (name := self.plain(key)) in made:
                    self.problems.append(f"line {key.start_mark.line + 1}: the key {key.value!r} stands twice")
                else:
                    made[name] = self.plain(value)
            return made
        if isinstance(node, yaml.SequenceNode) and node.tag == SEQUENCE:
            self.made[id(node)] = made = []
            made += map(self.plain, node.value)
            return made
        return self.made_of(node)

    def made_of(self, node: yaml.Node) -> Any:
        """What yaml makes of a node, by its tag; one that would make an object raises YAMLError."""
        try:
            return self.construct_object(node, deep=True)
        except yaml.YAMLError:
            raise
        except Exception:  # Python's own, of a text that is none of its type: a day of a 13th month
            kind, value = node.tag.removeprefix("tag:yaml.org,2002:"), str(node.value)
            shown = value if len(value) <= 40 else f"{value[:40]}…"
            self.problems.append(f"line {node.start_mark.line + 1}: {shown!r} is no {kind}")
            return None


def load_yaml(path: Path) -> Any:
    """The plain data of a YAML file.

    Raises:
        ConfigError: no such file, not YAML, a tag that would construct an object, or a key that stands twice.
    """
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The plain data of a YAML text, read from `where`; raises ConfigError as `load_yaml` does."""
    try:
        _check_size(text)
    except yaml.YAMLError as error:
        raise ConfigError(where, [f"not plain YAML: {' '.join(str(error).split())}"]) from error
    except ValueError as error:
        raise ConfigError(where, [str(error)]) from error
    loader = _Loader(text)
    loader.problems, loader.made = [], {}
    try:
        node = loader.get_single_node()
        data = None if node is None else loader.plain(node)
    except yaml.YAMLError as error:
        raise ConfigError(where, [f"not plain YAML: {' '.join(str(error).split())}"]) from error
    finally:
        loader.dispose()
    if loader.problems:
        raise ConfigError(where, loader.problems)
    return data


def _check_size(text: str) -> None:
    """Raise ValueError where a text has too many or too deep nodes, all that its aliases stand for counted."""
    known: dict[str, tuple[int, int]] = {}  # the nodes and the height of what anchors name
    open_nodes: list[tuple[str | None, int, int]] = [(None, 0, 0)]
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1, 1))
            if len(open_nodes) > DEEPEST:
                raise ValueError(f"more than {DEEPEST} levels deep")
            continue
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in known:
                raise ValueError(f"*{event.anchor} is part of itself, or of nothing")
            size, height = known[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size, height = event.anchor, 1, 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size, height = open_nodes.pop()
        else:
            continue
        if not isinstance(event, yaml.AliasEvent) and anchor is not None:
            known[anchor] = size, height
        above, total, highest = open_nodes[-1]
        open_nodes[-1] = above, total + size, max(highest, height + 1)
        if total + size > MOST_NODES or height + len(open_nodes) - 1 > DEEPEST:
            raise ValueError(f"more than {MOST_NODES:,} nodes, or more than {DEEPEST} levels deep, by its aliases")


def dump_yaml(data: Any) -> str:
    """Plain data as YAML: block style, but one line for what is small."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=300, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Block style for entries, one line for what is small."""

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        node = super().represent_mapping(tag, mapping, flow_style)
        node.flow_style = all(isinstance(value, yaml.ScalarNode) for _, value in node.value) and len(node.value) <= 6
        return node

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, flow_style=True)
