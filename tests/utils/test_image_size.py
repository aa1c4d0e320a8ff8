"""Which image size a run uses when several could tell."""

from types import SimpleNamespace

import pytest

from tests.saying import assert_says
from utils.errors import SettingsError
from utils.image_size import choose_image_size


def network(**attributes: object) -> SimpleNamespace:
    return SimpleNamespace(**({"multiple": 32, "trained_size": None, "static_hw": None} | attributes))


@pytest.mark.parametrize(
    ("asked", "attributes", "size_hw", "facts"),
    [
        (320, {"trained_size": 192}, (320, 320), []),
        ([256, 320], {}, (256, 320), []),
        (None, {"trained_size": 192}, (192, 192), ["image size 192", "trained", "--img"]),
        (None, {}, (640, 640), ["image size 640", "the weights do not say", "--img"]),
        (100, {}, (128, 128), ["--img 100", 32, "128 x 128"]),
        (100, {"multiple": 64}, (128, 128), ["--img 100", 64, "128 x 128"]),
        (None, {"static_hw": (256, 320), "trained_size": 320}, (256, 320), []),
        ([256, 320], {"static_hw": (256, 320)}, (256, 320), []),
        (320, {"static_hw": (256, 320)}, (256, 320), ["--img 320", "does not apply", "256 x 320"]),
        ([320, 256], {"static_hw": (256, 320)}, (256, 320), ["--img 320 256", "does not apply", "256 x 320"]),
    ],
)
def test_size(
    asked: object,
    attributes: dict,
    size_hw: tuple[int, int],
    facts: list[object],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert choose_image_size(asked, network(**attributes)) == size_hw
    printed = capsys.readouterr().out
    assert_says(printed, *facts)
    assert len(printed.splitlines()) == bool(facts)


def test_out_of_range() -> None:
    for attributes in ({}, {"static_hw": (64, 64)}):
        with pytest.raises(SettingsError) as caught:
            choose_image_size(0, network(**attributes))
        assert_says(caught.value, "--img 0")
