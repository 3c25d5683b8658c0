"""YAML in and out: plain data alone, and no key twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from zoo.errors import ConfigError
from zoo.storage.files import read_text

TEXT, MAPPING, SEQUENCE = (f"tag:yaml.org,2002:{name}" for name in ("str", "map", "seq"))


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader, quicker than yaml's own: it makes plain data only, and notes keys that stand twice."""

    def plain(self, node: yaml.Node) -> Any:
        """The data of a node. One that several aliases name is made once."""
        if isinstance(node, yaml.ScalarNode):
            return node.value if node.tag == TEXT else self.construct_object(node)
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
        return self.construct_object(node, deep=True)  # which raises for a tag that would make an object


def load_yaml(path: Path) -> Any:
    """The plain data of a YAML file.

    Raises:
        ConfigError: no such file, not YAML, a tag that would construct an object, or a key that stands twice.
    """
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The plain data of a YAML text, read from `where`; raises ConfigError as `load_yaml` does."""
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
