"""Options of train.py: what a resumed run takes over, and combinations that are refused."""

from typing import Any

import pytest

from tests.saying import assert_says
from utils.errors import SettingsError
from utils.training.options import TrainOptions


def test_options_that_a_resumed_run_may_change(capsys: pytest.CaptureFixture[str]) -> None:
    stored = TrainOptions(cfg="a.yaml", epochs=5, batch=4, seed=7, force=True)
    given = TrainOptions(epochs=9, batch=8, seed=7, given=frozenset({"epochs", "batch", "seed"}))
    options = given.resume_from(stored.as_dict(), "last.pt")
    assert (options.cfg, options.epochs, options.batch, options.resume) == ("a.yaml", 9, 4, "last.pt")
    assert not options.force
    assert (given.cfg, given.batch, given.resume) == ("", 8, None)
    said = capsys.readouterr().out
    assert_says(said, "last.pt", "--batch 4")
    assert "--epochs" not in said
    assert "--seed" not in said


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"min_transfer": 0.1}, ["--min-transfer", "--weights"]),
        ({"allow_partial": True}, ["--allow-partial", "--weights"]),
        ({"head_hidden": "rule"}, ["--head-hidden", "--weights"]),
        ({"min_transfer": 50.0, "weights": "a.pt"}, ["--min-transfer 50.0", "0 to 1"]),
    ],
)
def test_combinations(changes: dict[str, Any], facts: list[object]) -> None:
    with pytest.raises(SettingsError) as caught:
        TrainOptions(**changes, given=frozenset(changes)).check()
    assert_says(caught.value, *facts)
