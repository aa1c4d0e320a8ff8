"""What every registered layer promises, swept over the registry: a new layer is tested by existing."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.deploy import fold_modules
from models.registry import Channels, Layer, Scale, bind, registered_layers
from models.yolo import Model  # noqa: F401 registers every layer
from tests.networks import randomise
from utils.optim import parameter_groups

NUM_CLASSES = 3
SIZES_HW = [(8, 8), (7, 12), (9, 5), (2, 2)]
NAMES = sorted(registered_layers())


def is_head(entry: Layer) -> bool:
    return "branches" in entry.rule.fills


def input_channels(entry: Layer) -> list[Channels]:
    if is_head(entry):
        filled: dict[str, Any] = {}
        entry.rule.apply([16], filled, Scale())
        return [16, 24, 32] * filled["branches"] + [16] * filled["branches"] * entry.cls.extra_inputs
    return list(entry.example_inputs)


def build(name: str, seed: int = 0) -> tuple[nn.Module, list[Channels], Channels]:
    """Return a layer built from its example, its input channels, and the output channels that its rule declares."""
    entry = registered_layers()[name]
    torch.manual_seed(seed)
    channels = input_channels(entry)
    keywords = bind(entry, list(entry.example), NUM_CLASSES)
    declared = entry.rule.apply(channels, keywords, Scale())
    if entry.repeats:
        keywords[entry.repeats] = 1
    return entry.cls(**keywords), channels, declared


def make_input(name: str, channels: list[Channels], size_hw: tuple[int, int], batch: int = 1, dtype: torch.dtype = torch.float32) -> Any:
    """Return seeded input as the network would hand it over: a map, a list of maps, or lists in it."""
    entry, generator = registered_layers()[name], torch.Generator().manual_seed(1)

    def tensor(count: int, stride: int = 1) -> Tensor:
        height, width = (-(-side // stride) for side in size_hw)
        return torch.randn(batch, count, height, width, generator=generator, dtype=torch.float64).to(dtype)

    if is_head(entry):
        return [tensor(count, 2 ** (number % 3)) for number, count in enumerate(channels)]
    strides = entry.example_strides
    made = [
        tuple(tensor(part, s) for part in count) if isinstance(count, list) else tensor(count, s) for count, s in zip(channels, strides, strict=True)
    ]
    return made if len(made) > 1 else made[0]


def tensors_of(output: Any) -> list[Tensor]:
    """Return the tensors in an output or input, nesting aside."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return list(itertools.chain.from_iterable(tensors_of(value) for value in values))


def apply_to(value: Any, function: Any) -> Any:
    """Return an input with `function` applied to every tensor."""
    return function(value) if isinstance(value, Tensor) else type(value)(apply_to(item, function) for item in value)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_declared_channels_are_the_real_ones(name: str) -> None:
    module, channels, declared = build(name)
    module.eval()
    for size_hw in SIZES_HW:
        output = module(make_input(name, channels, size_hw))
        if is_head(registered_layers()[name]):
            assert declared == []
            masks = [module.num_masks] * 2 * (module.task == "segment")
            assert [tensor.shape[1] for tensor in tensors_of(output)] == ([64 + NUM_CLASSES] * module.levels + masks) * module.branches
        elif isinstance(declared, list):
            assert [tensor.shape[1] for tensor in output] == declared
        else:
            assert output.shape[:2] == (1, declared)


def test_maps_of_any_size_give_finite_values(name: str) -> None:
    module, channels, _ = build(name)
    module.eval()
    keeps_size = tensors_of(module(make_input(name, channels, (8, 8))))[0].shape[2:] == (8, 8)
    for size_hw in [*SIZES_HW, (3, 17)] + [(1, 1), (1, 6)] * keeps_size:  # a layer that halves a map needs something to halve
        assert all(tensor.isfinite().all() and tensor.numel() for tensor in tensors_of(module(make_input(name, channels, size_hw)))), size_hw


def test_every_trainable_parameter_gets_a_gradient(name: str) -> None:
    module, channels, _ = build(name)
    outputs = tensors_of(module.train()(make_input(name, channels, (7, 9), batch=2)))
    generator = torch.Generator().manual_seed(2)
    total = sum((tensor * torch.randn(tensor.shape, generator=generator)).sum() for tensor in outputs)
    trainable = {key: parameter for key, parameter in module.named_parameters() if parameter.requires_grad}
    if trainable:
        total.backward()
    for key, parameter in trainable.items():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key


def test_every_trainable_parameter_is_in_exactly_one_group(name: str) -> None:
    module, _, _ = build(name)
    grouped = [id(parameter) for group in parameter_groups(module) for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in module.parameters() if parameter.requires_grad)


def test_state_dict_round_trip(name: str) -> None:
    first, channels, _ = build(name)
    second, _, _ = build(name, seed=5)
    second.load_state_dict(randomise(first).state_dict())
    given = make_input(name, channels, (6, 5))
    for ours, theirs in zip(tensors_of(first.eval()(given)), tensors_of(second.eval()(given)), strict=True):
        assert torch.equal(ours, theirs)


def test_a_picture_does_not_depend_on_its_neighbours(name: str) -> None:
    module, channels, _ = build(name)
    randomise(module).double().eval()
    together = make_input(name, channels, (6, 7), batch=3, dtype=torch.float64)
    alone = apply_to(together, lambda tensor: tensor[1:2])
    for many, one in zip(tensors_of(module(together)), tensors_of(module(alone)), strict=True):
        torch.testing.assert_close(many[1:2], one, rtol=1e-9, atol=1e-12)


def test_a_used_layer_can_be_copied(name: str) -> None:
    module, channels, _ = build(name)
    given = make_input(name, channels, (6, 7), batch=2)
    module.train()(given)
    twin = copy.deepcopy(module)
    assert not {id(parameter) for parameter in twin.parameters()} & {id(parameter) for parameter in module.parameters()}
    for ours, theirs in zip(tensors_of(module.eval()(given)), tensors_of(twin.eval()(given)), strict=True):
        assert torch.equal(ours, theirs)


def test_the_input_is_left_alone(name: str) -> None:
    module, channels, _ = build(name)
    given = make_input(name, channels, (6, 6))
    before = [tensor.clone() for tensor in tensors_of(given)]
    module.eval()(given)
    assert all(torch.equal(old, new) for old, new in zip(before, tensors_of(given), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_number_formats(name: str, dtype: torch.dtype) -> None:
    module, channels, _ = build(name)
    for tensor in tensors_of(module.to(dtype).eval()(make_input(name, channels, (7, 6), batch=2, dtype=dtype))):
        assert tensor.dtype is dtype
        assert tensor.isfinite().all()


def test_a_folded_layer_computes_the_same(name: str) -> None:
    module, channels, _ = build(name)
    randomise(module).double().eval()
    given = make_input(name, channels, (6, 7), batch=2, dtype=torch.float64)
    expected = tensors_of(module(given))
    fold_modules(holder := nn.Sequential(module))
    for ours, theirs in zip(tensors_of(holder[0](given)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_every_layer_says_its_signature() -> None:
    for entry in registered_layers().values():
        assert entry.signature().startswith(f"{entry.name}(")
        assert not set(entry.parameters()) & {*entry.rule.fills, "device", "dtype"}
