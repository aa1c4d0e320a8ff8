"""Classes by name or number, and thresholds of single classes."""

import pytest

import val
from tests.saying import assert_says
from utils.errors import SettingsError
from utils.inference.class_choice import class_numbers, class_thresholds

NAMES = ["person", "traffic light", "7", "a=b"]


@pytest.mark.parametrize(
    ("asked", "limits"),
    [
        (0.3, 0.3),
        (0, 0),
        ("0.3", 0.3),
        (["0.3"], 0.3),
        ([0.3], 0.3),
        ([], 0.25),
        ({}, 0.25),
        ({None: 0.4}, 0.4),
        (["person=0.6", "0.3"], [0.6, 0.3, 0.3, 0.3]),
        (["0.3", "person=0.6"], [0.6, 0.3, 0.3, 0.3]),
        ("person=0.6", [0.6, 0.25, 0.25, 0.25]),
        (["traffic light=0.6", "0=0.1"], [0.1, 0.6, 0.25, 0.25]),
        (["7=0.6", "3=.7"], [0.25, 0.25, 0.6, 0.7]),
        (["a=b=1"], [0.25, 0.25, 0.25, 1.0]),
        ({"person": 0.6, 1: 0.5, None: 0}, [0.6, 0.5, 0, 0]),
        (["person=0.6", 0.3], [0.6, 0.3, 0.3, 0.3]),
    ],
)
def test_thresholds(asked: object, limits: object) -> None:
    assert class_thresholds(asked, NAMES) == limits


@pytest.mark.parametrize(
    ("asked", "facts"),
    [
        (1.5, ["--conf-thres 1.5", "0 to 1"]),
        (float("nan"), ["--conf-thres nan"]),
        (["person=-0.1"], ["--conf-thres person=-0.1", "0 to 1"]),
        (["0.2", "0.3"], ["--conf-thres 0.2 0.3", "CLASS=NUMBER"]),
        (["traffic", "light=0.3"], ["--conf-thres traffic", "'traffic light=0.6'"]),
        (["person=high"], ["--conf-thres person=high"]),
        (["person="], ["--conf-thres person="]),
        (["persn=0.3"], ["--conf-thres persn", "0..3", "'person'"]),
        (["9=0.3"], ["--conf-thres 9", "0..3"]),
        (["person=0.3", "0=0.4"], ["--conf-thres 0=0.4", "person", 0.3]),
        ({"bus": 0.3}, ["--conf-thres bus"]),
    ],
)
def test_thresholds_that_cannot_be_used(asked: object, facts: list[object]) -> None:
    with pytest.raises(SettingsError) as caught:
        class_thresholds(asked, NAMES)
    assert_says(caught.value, *facts)


def test_a_name_comes_before_a_number() -> None:
    assert class_numbers(["7", "0", 1, "a=b"], NAMES) == [2, 0, 1, 3]
    assert class_numbers(None, NAMES) is None


@pytest.mark.parametrize(
    ("wanted", "facts"),
    [
        (["0,2"], ["--classes 0,2", "--classes 0 2"]),
        (["person, traffic light"], ["--classes person 'traffic light'"]),
        (["9"], ["--classes 9", "0..3"]),
        (["-1"], ["--classes -1"]),
        (["persn"], ["--classes persn", "'person'"]),
    ],
)
def test_unknown_classes(wanted: list[str], facts: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        class_numbers(wanted, NAMES)
    assert_says(caught.value, *facts)


def test_val_has_one_threshold(capsys: pytest.CaptureFixture[str]) -> None:
    assert val.parse_options(["--weights", "w.pt", "--conf", "0.01"]).conf_thres == 0.01
    for word, facts in (("person=0.6", ["detect.py"]), ("high", ["number"])):
        with pytest.raises(SystemExit) as caught:
            val.parse_options(["--weights", "w.pt", "--conf", word])
        assert caught.value.code == 2
        assert_says(capsys.readouterr().err, "--conf-thres", word, *facts)
