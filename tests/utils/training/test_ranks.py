"""Several processes train as one: the same steps, whatever the number of ranks."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.networks import tiny_model
from tests.saying import assert_says
from tests.utils.test_ranks import torchrun
from tests.utils.training import rank_steps
from utils import ranks as rank_module
from utils.errors import SettingsError
from utils.training import set_up
from utils.training.options import TrainOptions


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


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        ("plug-ins", ("plug-ins", "rank 1", "other")),
        ("data", ("train images", "data.yaml", "rank 1")),
    ],
)
def test_ranks_with_other_files_are_refused(monkeypatch, changed, facts):
    """The digests of plug-ins and images are compared over the ranks."""
    model = tiny_model()
    sources = {"train": {"images": 4, "files": "aa"}, "val": {"images": 2, "files": "bb"}}

    def gathered(value: Any) -> list[Any]:
        if changed == "plug-ins" and isinstance(value, list):
            return [value, ["other"]]
        if changed == "data" and value == sources["train"]:
            return [value, value | {"files": "cc"}]
        return [value, value]

    monkeypatch.setattr(rank_module, "gathered", gathered)
    monkeypatch.setattr(set_up, "size", lambda: 2)
    loader = SimpleNamespace(dataset=range(4))
    with pytest.raises(SettingsError) as caught:
        set_up.check_ranks(TrainOptions(data="data.yaml", batch=4), sources, loader, model)
    assert_says(caught.value, *facts)


def test_ranks_with_the_same_files_are_accepted(monkeypatch):
    sources = {"train": {"images": 4}, "val": None}
    monkeypatch.setattr(rank_module, "gathered", lambda value: [value, value])
    monkeypatch.setattr(set_up, "size", lambda: 2)
    set_up.check_ranks(TrainOptions(batch=4), sources, SimpleNamespace(dataset=range(4)), tiny_model())
