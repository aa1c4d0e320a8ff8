"""The loss of several ranks: their averaged gradient is that of one process with the whole batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.yolo import Model
from tests.networks import seeded_images, tiny_config, tiny_segment_config
from utils.losses.detection import DetectionLoss, build_loss

RANKS = 3
UNEVEN = torch.tensor(
    [  # image, class, centre x, centre y, width, height: five objects in the first images, none in the last two
        [0, 0, 0.30, 0.40, 0.30, 0.30],
        [0, 1, 0.60, 0.50, 0.20, 0.50],
        [0, 2, 0.50, 0.70, 0.60, 0.20],
        [1, 1, 0.25, 0.25, 0.30, 0.40],
        [2, 2, 0.70, 0.70, 0.50, 0.50],
    ],
    dtype=torch.float64,
)


class Exchange:
    """Stands in for `utils.ranks.summed`: records what each rank adds in a first pass, and returns sums in a second."""

    def __init__(self) -> None:
        self.values: list[list[Tensor]] = []
        self.replayed = False

    def of_rank(self, rank: int) -> Callable[[Tensor], Tensor]:
        if not self.replayed:
            self.values.append([])
        calls = iter(range(10_000))

        def summed(value: Tensor) -> Tensor:
            if not self.replayed:
                self.values[rank].append(value.detach().clone())
                return value
            number = next(calls)
            return torch.stack([values[number] for values in self.values]).sum(0)

        return summed


def batch_of(images: slice, segment: bool) -> dict[str, Tensor]:
    """The images of a slice of six, with the objects of those."""
    whole = seeded_images(6, 3, 64, 64, dtype=torch.float64)
    inside = (UNEVEN[:, 0] >= images.start) & (UNEVEN[:, 0] < images.stop)
    targets = UNEVEN[inside] - torch.tensor([images.start, 0, 0, 0, 0, 0])
    batch = {"images": whole[images], "targets": targets}
    if segment:
        masks = torch.zeros(6, 16, 16, dtype=torch.int16)
        masks[0, 4:9, 3:8], masks[1, 2:6, 2:7], masks[2, 8:15, 8:15] = 1, 1, 1
        batch["masks"] = masks[images]
    return batch


def gradient(model: nn.Module, loss: DetectionLoss, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """All gradients of one step in one vector, and the loss items."""
    model.zero_grad()
    total, items = loss(model(batch["images"]), batch)
    total.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), items


@pytest.mark.parametrize(
    ("config", "loss"),
    [
        (tiny_config(1), None),
        (tiny_config(2), None),
        (tiny_config(3), {"box": "wiou"}),
        (tiny_segment_config(2), None),
    ],
    ids=["one branch", "an auxiliary branch", "a running mean", "masks"],
)
def test_ranks_together_have_the_gradient_of_one_process(config, loss):
    """Ranks of 1, 2 and 3 images, the last without an object; float64, frozen statistics: equal to 1e-10."""
    torch.manual_seed(0)
    model = Model(config).double()
    segment = model.task == "segment"
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    hyp = {"loss": loss} if loss else None
    alone = build_loss(model, hyp)
    expected, items = gradient(model, alone, batch_of(slice(0, 6), segment))

    exchange, parts = Exchange(), [slice(0, 1), slice(1, 3), slice(3, 6)]
    for exchange.replayed in (False, True):
        losses = [build_loss(model, hyp).across(RANKS, exchange.of_rank(rank)) for rank in range(RANKS)]
        found = [gradient(model, one, batch_of(part, segment)) for one, part in zip(losses, parts, strict=True)]
    average = torch.stack([vector for vector, _ in found]).mean(0)
    assert expected.abs().max() > 1e-3
    assert (average - expected).abs().max() < 1e-10 * expected.abs().max().clamp(min=1)
    for name, value in items.items():
        torch.testing.assert_close(sum(one[name] for _, one in found), value, rtol=1e-10, atol=1e-12)
    for one in losses:
        assert {k: v.tolist() for k, v in one.state_dict().items()} == {
            k: pytest.approx(v.tolist(), rel=1e-6) for k, v in alone.state_dict().items()
        }


def test_each_rank_by_itself_has_another_gradient():
    """Without the exchange the averaged gradient differs: the objects are spread unevenly."""
    torch.manual_seed(0)
    model = Model(tiny_config(1)).double()
    expected, _ = gradient(model, build_loss(model), batch_of(slice(0, 6), False))
    parts = [gradient(model, build_loss(model), batch_of(part, False))[0] for part in (slice(0, 3), slice(3, 6))]
    assert (torch.stack(parts).sum(0) - expected).abs().max() > 1e-3
