"""The page of all layers, and what is read from their docstrings."""

from pathlib import Path

import pytest
from torch import nn

from models.check import main
from models.checks.catalogue import BUILT_IN, is_torch, labelled, sentence, signature
from models.registry import Layer, registered_layers, same
from utils.files import REPOSITORY

NAMES = sorted(name for name, entry in registered_layers().items() if entry.cls.__module__.startswith(BUILT_IN))


class Documented(nn.Module):
    """Weigh a map, i.e. all of it. A second sentence.

    Args:
        gain: see Differs: below.
    Source: Someone et al. 2020, arxiv.org/abs/2001.00001,
        section 3.
    Differs: nothing is learned
        here.

    Raises:
        ValueError: never.
    """

    def __init__(self, channels: int, gain: float = 1.0) -> None:
        super().__init__()


DOCUMENTED = Layer(
    name="Mine",
    cls=Documented,
    rule=same,
    role="other",
    repeats=None,
    example=(),
    example_inputs=(8,),
    example_strides=(1,),
)


def test_what_a_docstring_says() -> None:
    assert sentence(DOCUMENTED) == "Weigh a map, i.e. all of it."
    assert labelled(DOCUMENTED, "Source") == "Someone et al. 2020, arxiv.org/abs/2001.00001, section 3."
    assert labelled(DOCUMENTED, "Differs") == "nothing is learned here."


def test_signatures_of_torch_do_not_depend_on_its_annotations() -> None:
    assert signature(registered_layers()["nn.AvgPool2d"]).startswith(
        "nn.AvgPool2d(kernel_size, stride=None, padding=0, ceil_mode=False"
    )
    assert signature(DOCUMENTED) == "Mine(gain: float = 1.0)"


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_says_what_it_is_and_where_it_comes_from(name: str) -> None:
    entry = registered_layers()[name]
    assert sentence(entry).endswith(".")
    assert is_torch(entry) or labelled(entry, "Source")
    assert labelled(entry, "Source").count("Differs:") == 0, "Differs: begins a line of its own"


def test_the_page_is_current(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "page.md"
    assert main(["--catalogue", str(written)]) == 0
    assert capsys.readouterr().out == f"{written}: written\n"
    page = REPOSITORY / "docs" / "catalogue.md"
    assert page.read_text(encoding="utf-8") == written.read_text(encoding="utf-8"), (
        "run python -m models.check --catalogue docs/catalogue.md"
    )


def test_the_page_has_every_layer() -> None:
    text = (REPOSITORY / "docs" / "catalogue.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"| **{name}**<br>`" not in text] == []
    assert "## Attention\n" in text
