"""Helpers for messages, by literal texts."""

from utils.wording import first_line, is_count, listed


def test_listed() -> None:
    assert listed([]) == ""
    assert listed(["a", 2], most=2) == "a, 2"
    assert listed("abcdefg", most=3) == "a, b, c and 4 more"


def test_first_line() -> None:
    assert first_line(ValueError("\n  what\nmore")) == "what"
    assert first_line(KeyError()) == "KeyError"


def test_is_count() -> None:
    assert is_count(1)
    assert not is_count(0)
    assert is_count(0, least=0)
    assert not is_count(True)
    assert not is_count(2.0)
