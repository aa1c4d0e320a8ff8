"""The helper of tests about messages can fail."""

import pytest

from tests.saying import assert_says


def test_facts_stand_alone() -> None:
    assert_says("net.yaml:4: stride is 18: expected 8 or 16", "net.yaml:4", 18, "8", "16")
    with pytest.raises(AssertionError, match="'8'"):
        assert_says("net.yaml:4: stride is 18", "net.yaml:4", 8)
    with pytest.raises(AssertionError, match="gelan-t"):
        assert_says(ValueError("no such file: gelan-c.yaml"), "gelan-t.yaml")
