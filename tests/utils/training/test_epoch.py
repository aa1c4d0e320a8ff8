"""One epoch of training: the loss falls, steps are counted, and what is not finite does no harm."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.networks import tiny_model
from tests.saying import assert_says
from utils.errors import TrainingStoppedError
from utils.hyperparameters import Hyperparameters
from utils.losses.detection import build_loss
from utils.optim.ema import ModelEMA
from utils.optim.optimizer import DECAYED, Schedule, build_optimizer
from utils.precision import choose_precision
from utils.training import epoch as engine
from utils.training.epoch import MAX_BAD_STEPS, EpochState, Training, optimizer_step, resized, train_one_epoch

FAST = Hyperparameters(lr0=0.02, warmup_epochs=0.0, weight_decay=0.0, lrf=1.0)


def make_batch(batch: int = 2, side: int = 64) -> dict[str, Any]:
    """Images with one bright square each, and where it is."""
    images = torch.full((batch, 3, side, side), 30, dtype=torch.uint8)
    images[:, :, 16:48, 8:40] = 220
    targets = torch.tensor([[number, number % 3, 24 / 64, 0.5, 0.5, 0.5] for number in range(batch)])
    return {"images": images, "targets": targets}


def make_training(
    hyp: Hyperparameters = FAST, branches: int = 1, batches: int = 1, amp: str = "off", **settings: Any
) -> Training:
    model = tiny_model(branches, width=16)
    schedule = Schedule(hyp, "linear", epochs=1000, batches_per_epoch=batches, batch_size=settings.pop("batch_size", 2))
    return Training(
        model=model,
        ema=ModelEMA(model),
        optimizer=build_optimizer(model, "SGD", hyp, schedule.weight_decay),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        loss=build_loss(model, hyp),
        schedule=schedule,
        precision=choose_precision("cpu", amp),
        **settings,
    )


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("branches", [1, pytest.param(2, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_loss_falls_on_one_batch(branches: int, amp: str) -> None:
    training, batch = make_training(branches=branches, amp=amp), make_batch()
    results = [train_one_epoch(training, [batch], epoch, progress=False) for epoch in range(25)]
    sums = [sum(result.items.values()) for result in results]
    assert all(map(math.isfinite, sums))
    assert min(sums[-5:]) < 0.8 * sums[0], sums
    assert results[-1].items["cls"] < 0.5 * results[0].items["cls"]
    assert sum(result.skipped_steps for result in results) == 0
    assert training.ema.updates == 25
    assert all(parameter.dtype is torch.float32 for parameter in training.model.parameters())


def test_result_is_the_mean_over_batches() -> None:
    training = make_training(Hyperparameters(lr0=0.0, warmup_epochs=0.0), batches=2)
    first, second = make_batch(), make_batch()
    second["targets"] = torch.zeros(0, 6)
    both = train_one_epoch(training, [first, second], 0, progress=False)
    training.schedule.batches_per_epoch = 1
    alone = [train_one_epoch(training, [batch], 0, progress=False).items for batch in (first, second)]
    for name, value in both.items.items():
        assert value == pytest.approx((alone[0][name] + alone[1][name]) / 2, rel=1e-4)
    assert both.seconds > both.waited >= 0


def test_gradients_of_several_batches_make_one_step() -> None:
    hyp = Hyperparameters(warmup_epochs=0.0, nominal_batch=8, min_steps_per_epoch=1)
    training = make_training(hyp, batches=6)
    assert training.schedule.accumulate == 4
    train_one_epoch(training, [make_batch()] * 6, 0, progress=False)
    assert training.ema.updates == 2, "one step after four batches, one at the end of the epoch"


def test_momentum_and_rates_follow_the_schedule() -> None:
    training = make_training(Hyperparameters(warmup_epochs=2.0, warmup_share=1.0), batches=2)
    train_one_epoch(training, [make_batch()] * 2, 0, progress=False)
    bias, weights, _ = training.optimizer.param_groups
    assert weights["lr"] == pytest.approx(0.25 * 0.01)
    assert bias["lr"] == pytest.approx(0.1 + 0.25 * (0.01 - 0.1))
    assert weights["momentum"] == pytest.approx(0.8 + 0.25 * 0.137)


def test_clipping_acts() -> None:
    hyp = Hyperparameters(
        lr0=1.0, momentum=0.0, warmup_momentum=0.0, warmup_epochs=0.0, clip_norm=1e-3, weight_decay=0.0
    )
    training = make_training(hyp)
    training.optimizer = torch.optim.SGD(
        [{"params": list(training.model.parameters()), "kind": DECAYED, "factor": 1.0}], lr=1.0
    )
    before = [parameter.detach().clone() for parameter in training.model.parameters()]
    train_one_epoch(training, [make_batch()], 0, progress=False)
    moved = torch.cat(
        [(new - old).flatten() for old, new in zip(before, training.model.parameters(), strict=True)]
    ).norm()
    assert moved.item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops(value: float) -> None:
    training = make_training(batches=2)
    real, calls = training.loss, []

    def broken(outputs: Any, batch: Any) -> Any:
        total, items = real(outputs, batch)
        calls.append(1)
        return (total * value if len(calls) == 2 else total), items

    training.loss = broken
    with pytest.raises(TrainingStoppedError) as caught:
        train_one_epoch(training, [make_batch()] * 2, 3, progress=False)
    assert_says(caught.value, "epoch 4", "batch 2", value, "lr0", "--amp off")
    assert all(parameter.isfinite().all() for parameter in training.model.parameters()), "no step was taken with it"
    assert all(value.isfinite().all() for value in training.ema.model.state_dict().values())


class FakeScaler:
    """A gradient scaler for the CPU: if a gradient is not finite, it halves its scale and skips the step."""

    def __init__(self) -> None:
        self.factor, self.found = 1024.0, False

    def is_enabled(self) -> bool:
        return True

    def scale(self, loss: Tensor) -> Tensor:
        return loss * self.factor

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        assert gradients, "what a real scaler requires"
        self.found = not all(gradient.isfinite().all() for gradient in gradients)
        for gradient in gradients:
            gradient /= self.factor

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        if not self.found:
            optimizer.step()

    def update(self) -> None:
        self.factor *= 0.5 if self.found else 1.0


def lose(training: Training, number: int, value: float = float("inf")) -> None:
    """Make the loss of one batch, counted from 1, not finite."""
    real, calls = training.loss, []

    def lossy(outputs: Any, batch: Any) -> Any:
        total, items = real(outputs, batch)
        calls.append(1)
        return (
            (total * value, {name: item * value for name, item in items.items()})
            if len(calls) == number
            else (total, items)
        )

    training.loss = lossy


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_lost_loss_lowers_the_scale_where_there_is_one(value: float) -> None:
    training, expected = make_training(batches=3), make_training(batches=2)
    training.scaler, expected.scaler = FakeScaler(), FakeScaler()
    lose(training, 2, value)
    result = train_one_epoch(training, [make_batch()] * 3, 0, progress=False)
    assert (result.skipped_steps, training.bad_steps, training.ema.updates) == (1, 0, 2)
    assert training.scaler.factor == 512.0
    assert all(math.isfinite(item) for item in result.items.values()), "the lost batch does not count"
    assert all(tensor.isfinite().all() for tensor in training.model.state_dict().values())
    train_one_epoch(expected, [make_batch()] * 2, 0, progress=False)
    assert all(map(torch.equal, *(list(one.model.parameters()) for one in (training, expected)))), (
        "as if the batch had not been"
    )


def test_a_lost_loss_ends_the_gradients_that_were_gathered_with_it() -> None:
    hyp = Hyperparameters(warmup_epochs=0.0, nominal_batch=4, min_steps_per_epoch=1)
    training = make_training(hyp, batches=4)
    training.scaler = FakeScaler()
    assert training.schedule.accumulate == 2
    lose(training, 2)
    result = train_one_epoch(training, [make_batch()] * 4, 0, progress=False)
    assert (result.skipped_steps, training.ema.updates) == (1, 1)


def test_the_real_scaler_takes_a_lost_loss_likewise() -> None:
    training = make_training(batches=3)
    training.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    lose(training, 2)
    assert train_one_epoch(training, [make_batch()] * 3, 0, progress=False).skipped_steps == 1
    assert training.scaler.get_scale() == 32.0


def test_an_overflow_leaves_no_trace_in_the_statistics() -> None:
    training = make_training()
    training.scaler = FakeScaler()
    lose(training, 1)
    with torch.no_grad():
        training.model.model[1].bn.running_mean[2] = float("inf")
    train_one_epoch(training, [make_batch()], 0, progress=False)
    assert torch.equal(training.model.model[1].bn.running_mean, training.ema.model.model[1].bn.running_mean)


def test_too_many_lost_losses_stop() -> None:
    training = make_training()
    training.scaler, training.bad_steps = FakeScaler(), MAX_BAD_STEPS - 1
    lose(training, 1)
    with pytest.raises(TrainingStoppedError) as caught:
        train_one_epoch(training, [make_batch()], 0, progress=False)
    assert_says(caught.value, f"{MAX_BAD_STEPS} steps")


def test_an_epoch_goes_on_where_it_was() -> None:
    hyp = Hyperparameters(warmup_epochs=0.0, nominal_batch=4, min_steps_per_epoch=1)
    batches = [make_batch() | {"targets": make_batch()["targets"] * (1 - number / 20)} for number in range(6)]
    whole, halves = make_training(hyp, batches=6, multi_scale=True), make_training(hyp, batches=6, multi_scale=True)
    expected = train_one_epoch(whole, batches, 0, progress=False)
    seen: list[int] = []
    kept: list[EpochState] = []

    def keep(state: EpochState) -> None:
        seen.append(state.batch)
        kept.append(copy.deepcopy(state))

    train_one_epoch(halves, batches[:4], 0, progress=False, after_step=keep)
    assert seen == [2, 4], "where no gradient is pending"
    result = train_one_epoch(halves, batches[4:], 0, progress=False, done=kept[-1])
    assert result.items == expected.items
    assert same(state(whole.model), state(halves.model))
    assert same(state(whole.ema.model), state(halves.ema.model))
    assert whole.ema.updates == halves.ema.updates == 3


def spoil(training: Training, when: Callable[[int], bool]) -> None:
    """Make the gradient of one weight not finite in the batches that `when` names."""
    weight, calls = training.model.model[0].conv.weight, []

    def hook(gradient: Tensor) -> Tensor:
        calls.append(1)
        return gradient * float("nan") if when(len(calls)) else gradient

    weight.register_hook(hook)


def test_a_step_whose_gradient_is_not_finite_is_left_out() -> None:
    training = make_training(batches=3)
    weights = [parameter.detach().clone() for parameter in training.model.parameters()]
    spoil(training, lambda _: True)
    result = train_one_epoch(training, [make_batch()] * 3, 0, progress=False)
    assert result.skipped_steps == training.bad_steps == 3
    assert training.ema.updates == 0
    assert all(torch.equal(old, new) for old, new in zip(weights, training.model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in training.model.parameters())


def test_a_good_step_forgives_the_bad_ones_before() -> None:
    training = make_training(batches=4)
    spoil(training, lambda number: number in (1, 3))
    result = train_one_epoch(training, [make_batch()] * 4, 0, progress=False)
    assert result.skipped_steps == 2
    assert training.bad_steps == 0
    assert training.ema.updates == 2
    assert all(parameter.isfinite().all() for parameter in training.model.parameters())


def test_too_many_bad_steps_stop() -> None:
    training = make_training()
    training.bad_steps = MAX_BAD_STEPS - 1
    spoil(training, lambda _: True)
    with pytest.raises(TrainingStoppedError) as caught:
        train_one_epoch(training, [make_batch()], 0, progress=False)
    assert_says(caught.value, f"{MAX_BAD_STEPS} steps", "gradient", "lr0")


def test_frozen_layers_keep_weights_and_statistics() -> None:
    training = make_training()
    first = training.model.model[0].requires_grad_(False)
    training.frozen = [first.bn]
    training.optimizer = build_optimizer(training.model, "SGD", FAST, 0.01)
    frozen, moving = state(first), state(training.model.model[1])
    for epoch in range(3):
        train_one_epoch(training, [make_batch()], epoch, progress=False)
    assert same(frozen, state(first))
    assert not same(moving, state(training.model.model[1]))
    assert training.model.model[1].bn.num_batches_tracked == 3
    assert same(frozen, dict(training.ema.model.model[0].state_dict().items()))


def test_the_averaged_network_follows() -> None:
    training = make_training()
    before = state(training.ema.model)
    train_one_epoch(training, [make_batch()], 0, progress=False)
    after = state(training.ema.model)
    weight = 1 - 2 / 11
    name = "model.0.conv.weight"
    expected = before[name].lerp(training.model.state_dict()[name], weight)
    torch.testing.assert_close(after[name], expected)
    assert not training.ema.model.training


def test_multi_scale_changes_the_size_and_keeps_the_result_finite() -> None:
    seen = []
    training = make_training(multi_scale=True, batches=6)
    real = training.loss
    training.loss = lambda outputs, batch: (seen.append(tuple(batch["images"].shape[2:])), real(outputs, batch))[1]
    train_one_epoch(training, [make_batch()] * 6, 0, progress=False)
    assert len(set(seen)) > 1
    assert all(side % 32 == 0 and 32 <= side <= 96 for size in seen for side in size)


def test_resized_depends_on_seed_epoch_and_batch_alone() -> None:
    images = torch.rand(1, 3, 64, 128)
    sizes = {
        (epoch, number): tuple(resized(images, epoch, number, 0, 32).shape[2:])
        for epoch in range(3)
        for number in range(5)
    }
    again = {
        (epoch, number): tuple(resized(images, epoch, number, 0, 32).shape[2:])
        for epoch in range(3)
        for number in range(5)
    }
    assert sizes == again
    assert len(set(sizes.values())) > 2
    assert any(
        tuple(resized(images, epoch, number, 1, 32).shape[2:]) != size for (epoch, number), size in sizes.items()
    )


def test_one_seed_gives_one_result() -> None:
    results = []
    for _ in range(2):
        training = make_training(branches=2)
        for epoch in range(2):
            train_one_epoch(training, [make_batch()], epoch, progress=False)
        results.append(state(training.model))
    assert same(*results)


def test_optimizer_step_alone() -> None:
    training = make_training()
    training.model.model[0].conv.weight.grad = torch.ones_like(training.model.model[0].conv.weight)
    before = copy.deepcopy(training.model.model[0].conv.weight.detach())
    assert optimizer_step(training)
    assert not torch.equal(before, training.model.model[0].conv.weight)


def test_progress_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "tqdm", partial(engine.tqdm, mininterval=0))
    train_one_epoch(make_training(), [make_batch()], 4, progress=True)
    shown = capsys.readouterr().err
    assert "epoch 5/1000" in shown
    assert "images/s" in shown
    assert all(name in shown for name in ("box", "cls", "dfl"))
