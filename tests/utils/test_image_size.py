"""Which image size a run uses when several could tell."""

from types import SimpleNamespace

import pytest

from utils.errors import SettingsError
from utils.image_size import choose_image_size


def network(**attributes: object) -> SimpleNamespace:
    return SimpleNamespace(**({"multiple": 32, "trained_size": None, "static_hw": None} | attributes))


@pytest.mark.parametrize(
    ("asked", "attributes", "size_hw", "said"),
    [
        (320, {"trained_size": 192}, (320, 320), ""),
        ([256, 320], {}, (256, 320), ""),
        (
            None,
            {"trained_size": 192},
            (192, 192),
            "image size 192, at which the network was trained (--img chooses another)\n",
        ),
        (
            None,
            {"trained_size": None},
            (640, 640),
            "image size 640, since the weights do not say at which size they were trained",
        ),
        (None, {}, (640, 640), "image size 640, since"),
        (100, {}, (128, 128), "--img 100: not a multiple of 32, as the network needs: 128 x 128"),
        (None, {"static_hw": (256, 320), "trained_size": 320}, (256, 320), ""),
        ([256, 320], {"static_hw": (256, 320)}, (256, 320), ""),
        (
            320,
            {"static_hw": (256, 320)},
            (256, 320),
            "--img 320: does not apply to a static file: exactly 256 x 320 (height x width) is used\n",
        ),
        ([320, 256], {"static_hw": (256, 320)}, (256, 320), "--img 320 256: does not apply"),
    ],
)
def test_size(
    asked: object, attributes: dict, size_hw: tuple[int, int], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert choose_image_size(asked, network(**attributes)) == size_hw
    printed = capsys.readouterr().out
    assert printed.startswith(said)
    assert bool(printed) == bool(said)


def test_out_of_range() -> None:
    for attributes in ({}, {"static_hw": (64, 64)}):
        with pytest.raises(SettingsError, match="--img 0"):
            choose_image_size(0, network(**attributes))
