"""Several processes train as one: the same steps, whatever the number of ranks."""

import sys

import pytest
import torch

from tests.utils.test_ranks import torchrun
from tests.utils.training import rank_steps


@pytest.mark.parametrize(("ranks", "branches", "batch"), [(2, 2, 2), pytest.param(3, 1, 6, marks=pytest.mark.slow)])
def test_an_epoch_of_several_ranks_is_that_of_one_process(tmp_path, monkeypatch, ranks, branches, batch):
    """Nine images, so that the last batch has fewer images than a batch; a step of four batches; objects uneven.

    With two ranks and a batch of two, one rank has no image of the last batch.
    """
    words = [rank_steps.__file__, str(tmp_path), str(branches), str(batch)]
    monkeypatch.setattr(sys, "argv", words)
    rank_steps.main()
    status, _, err = torchrun(*words, processes=ranks)
    assert status == 0, err
    one, several = (torch.load(tmp_path / f"{count}ranks.pt", weights_only=True) for count in (1, ranks))
    assert one["accumulate"] == 8 // batch
    for name, value in one["model"].items():
        if value.is_floating_point():
            assert (several["model"][name] - value).abs().max() < 1e-10, name
    for name, value in one["items"].items():
        assert several["items"][name] == pytest.approx(value, rel=1e-6)
