"""Place of each row of a network, for messages: file and line, or the edit that wrote it."""

from dataclasses import dataclass, field
from pathlib import Path

import yaml

SECTIONS = ("backbone", "head")
"""Keys of a network yaml that hold rows."""


@dataclass
class Places:
    """The name that messages use for a network, and the place of each item of its yaml.

    Attributes:
        keys: the place of each key.
        sections: for `backbone`, `head` and `edits` the place of each item, such as "yolov9-c.yaml:23".
    """

    name: str
    sections: dict[str, list[str]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def of(self, section: str, number: int) -> str:
        """Return the place of one item; the network's name if it is not known."""
        known = self.sections.get(section, [])
        return known[number] if number < len(known) else self.name


def yaml_places(path: Path, name: str) -> Places:
    """Return the places of a network yaml's items.

    Args:
        path: a file of valid yaml.
        name: its name in messages.
    """
    root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    sections: dict[str, list[str]] = {}
    keys: dict[str, str] = {}
    if isinstance(root, yaml.MappingNode):
        for key, value in root.value:
            keys[key.value] = f"{name}:{key.start_mark.line + 1}"
            if key.value in (*SECTIONS, "edits") and isinstance(value, yaml.SequenceNode):
                sections[key.value] = [f"{name}:{item.start_mark.line + 1}" for item in value.value]
    return Places(name, sections, keys)
