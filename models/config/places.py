"""Where each row of a network stands, for messages: file and line, or the edit that brought it."""

from dataclasses import dataclass, field
from pathlib import Path

import yaml

SECTIONS = ("backbone", "head", "edits")
"""Keys of a network yaml that hold rows, or edits of them."""


@dataclass
class Places:
    """The name that messages use for a network, and where each item of its sections stands.

    Attributes:
        keys: the place of each key of the file.
        sections: for `backbone`, `head` and `edits`, a place for each item, such as "yolov9-c.yaml:23"; items without one are at `name`.
    """

    name: str
    sections: dict[str, list[str]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def of(self, section: str, number: int) -> str:
        """Return the place of one item."""
        known = self.sections.get(section, [])
        return known[number] if number < len(known) else self.name

    def rows(self, config: dict) -> dict[str, list[str]]:
        """Return the place of every row of a configuration, by section."""
        return {
            section: [self.of(section, number) for number in range(len(config[section]))]
            for section in ("backbone", "head")
        }


def yaml_places(path: Path, name: str) -> Places:
    """Return where the items of a network yaml stand; `name` is what messages call the file, which is known to be valid yaml."""
    root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    sections: dict[str, list[str]] = {}
    keys: dict[str, str] = {}
    if isinstance(root, yaml.MappingNode):
        for key, value in root.value:
            keys[key.value] = f"{name}:{key.start_mark.line + 1}"
            if key.value in SECTIONS and isinstance(value, yaml.SequenceNode):
                sections[key.value] = [f"{name}:{item.start_mark.line + 1}" for item in value.value]
    return Places(name, sections, keys)
