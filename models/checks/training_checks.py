"""Checks of training; each has its remedy."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from models.checks.checking import NotApplicableError, Suite, demand, demand_equal, demand_finite, first_line, run
from models.checks.layer_case import REPEATABLE, RUNS, LayerCase, apply_to, size_text, tensors_of
from models.parameters import parameter_groups
from utils.errors import ModelConfigError
from utils.wording import listed

TRAINING_CHECKS: Suite[LayerCase] = Suite()
STEPS, RATE = 3, 0.1
"""Number of training steps within which every parameter must get a gradient, and their learning rate."""


@TRAINING_CHECKS.add(
    "one image",
    "BatchNorm after a global pooling has one value per channel and no variance: "
    "use models.parts.BatchNorm2d, or GroupNorm.",
    needs=(RUNS,),
)
def check_one_image(case: LayerCase) -> str:
    """The layer trains on a batch of one image."""

    def train(size_hw: tuple[int, int]) -> None:
        module = case.build().train()
        outputs = run(module, case.given(size_hw))
        demand_finite(outputs, "values")
        total = sum((tensor.sum() for tensor in outputs), torch.zeros(()))
        if total.requires_grad:
            total.backward()
        demand_finite([p.grad for p in module.parameters() if p.grad is not None], "gradients")

    train(case.size_hw)
    if case.fixed_hw:
        return f"of {size_text(case.size_hw)}"
    try:
        train((1, 1))
    except (RuntimeError, ValueError):  # a plain BatchNorm has no variance there; reported, not required
        return f"of {size_text(case.size_hw)}; a map of 1 x 1 does not train"
    return f"of {size_text(case.size_hw)} and of 1 x 1"


def backward_passes(case: LayerCase) -> Iterator[tuple[nn.Module, Any, int]]:
    """Train a layer for some steps; after each backward pass yield the layer, its input and the step's number."""
    module = case.build().train()
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=RATE) if trainable else None
    for step in range(1, STEPS + 1):
        leaves = apply_to(case.given(case.size_hw, 2, seed=step), lambda tensor: tensor.requires_grad_())
        outputs = run(module, apply_to(leaves, lambda tensor: tensor * 1))
        generator = torch.Generator().manual_seed(step + 1)
        total = sum(
            ((tensor * torch.randn(tensor.shape, generator=generator)).sum() for tensor in outputs), torch.zeros(())
        )
        if optimizer:
            optimizer.zero_grad()
        if total.requires_grad:
            total.backward()
        yield module, leaves, step
        if optimizer:
            optimizer.step()


@TRAINING_CHECKS.add(
    "gradients",
    "Use the parameter in forward() on the way to the output, without detach(), .data or no_grad(); "
    "call requires_grad_(False) on one that is kept for its name only.",
    needs=(RUNS,),
)
def check_gradients(case: LayerCase) -> str:
    """A finite gradient reaches every trainable parameter."""
    reached: dict[str, int] = {}
    for module, _, step in backward_passes(case):
        trainable = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        if not trainable:
            raise NotApplicableError("nothing to train")
        for name, parameter in trainable.items():
            demand(
                parameter.grad is None or bool(parameter.grad.isfinite().all()),
                f"{name}: its gradient has inf or nan in step {step}",
            )
            if name not in reached and parameter.grad is not None and parameter.grad.abs().sum() > 0:
                reached[name] = step
        if len(reached) == len(trainable):
            break
    missing = [name for name in trainable if name not in reached]
    demand(
        not missing,
        f"{len(missing)} of {len(trainable)} parameters get none: {listed(missing, 6)}",
    )
    late = [name for name, step in reached.items() if step > 1]
    return f"{len(trainable)} of {len(trainable)} parameters, " + (
        f"{len(late)} of them from step {max(reached.values())} on" if late else "at once"
    )


@TRAINING_CHECKS.add(
    "input gradients",
    "Remove detach(), .data, no_grad(), argmax and rounding between this input and the output, or do not "
    "name the input in 'from'.",
    needs=(RUNS,),
)
def check_input_gradients(case: LayerCase) -> str:
    """A gradient reaches every input, so that earlier layers learn."""
    reached: set[int] = set()
    for _, leaves, _ in backward_passes(case):
        inputs = leaves if isinstance(leaves, list) else [leaves]
        for number, value in enumerate(inputs):
            gradients = [tensor.grad for tensor in tensors_of(value) if tensor.grad is not None]
            demand(
                all(bool(gradient.isfinite().all()) for gradient in gradients),
                f"input {number}: its gradient has inf or nan",
            )
            if any(gradient.abs().sum() > 0 for gradient in gradients):
                reached.add(number)
        if len(reached) == len(inputs):
            break
    missing = [str(number) for number in range(len(inputs)) if number not in reached]
    demand(not missing, f"input {', '.join(missing)} of {len(inputs)} gets none")
    return f"{len(inputs)} of {len(inputs)} inputs"


def trained_leaves(outputs: list[Tensor]) -> set[int]:
    """Return the ids of the tensors that get a gradient in a backward pass from `outputs`."""
    waiting = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    seen, leaves = set(waiting), set()
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return leaves


@TRAINING_CHECKS.add(
    "optimizer",
    "Register everything that is trained: self.name = nn.Parameter(…), modules in nn.ModuleList or nn.ModuleDict; "
    "parameters in a plain list or dict are neither trained nor saved.",
    needs=(RUNS,),
)
def check_optimizer(case: LayerCase) -> str:
    """Every trainable parameter is in exactly one group of the optimizer."""
    module = case.build().train()
    return grouped_exactly_once(module, run(module, case.given(case.size_hw, 2)))


def grouped_exactly_once(module: nn.Module, outputs: list[Tensor]) -> str:
    """Fail the check unless every tensor that gets a gradient is exactly once in the optimizer's groups."""
    groups = parameter_groups(module)
    grouped = [id(parameter) for group in groups for parameter in group]
    trainable = [id(parameter) for parameter in module.parameters() if parameter.requires_grad]
    demand(
        sorted(grouped) == sorted(trainable),
        f"{len(trainable)} trainable parameters, {len(grouped)} places in the groups",
    )
    hidden = trained_leaves(outputs) - set(grouped)
    what = (
        "1 tensor that learns is no registered parameter"
        if len(hidden) == 1
        else f"{len(hidden)} tensors that learn are no registered parameters"
    )
    demand(not hidden, f"{what}: no optimizer, no checkpoint and no .to(device) reaches them")
    biases, decayed, others = map(len, groups)
    return f"{decayed} decayed, {others} vectors, {biases} biases" if grouped else "nothing to train"


@TRAINING_CHECKS.add(
    "mixed precision",
    "Convolutions give bfloat16 there while parameters stay float32: "
    "write .to(y.dtype) where the two meet in one operation.",
    needs=(RUNS,),
)
def check_mixed_precision(case: LayerCase) -> str:
    """The layer trains under autocast, as training runs do."""
    module = case.build().train()
    leaves = apply_to(case.given(case.size_hw, 2), lambda tensor: tensor.requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        outputs = run(module, apply_to(leaves, lambda tensor: tensor * 1))
    demand_finite(outputs, "values")
    sum((tensor.float().square().sum() for tensor in outputs), torch.zeros(())).backward()
    demand_finite([parameter.grad for parameter in module.parameters() if parameter.grad is not None], "gradients")
    return "autocast to bfloat16, backward included"


@TRAINING_CHECKS.add(
    "identity start",
    "Start the last step of the branch (projection, layer scale, gate) at zero beside a residual connection, and "
    "leave the others as they are.",
    needs=(RUNS, REPEATABLE),
)
def check_identity_start(case: LayerCase) -> str:
    """With `start: identity` the layer at first returns its input unchanged, and then learns."""
    if "start" not in case.entry.parameters():
        raise NotApplicableError("has no argument `start`")
    case = with_identity_start(case)
    module = case.build().eval()
    demand_equal(run(module, case.given(case.size_hw, 2)), tensors_of(case.given(case.size_hw, 2)), "the input")
    return check_gradients(case)


def with_identity_start(case: LayerCase) -> LayerCase:
    """Return a case with `start: identity`, and with a switch such as `residual` turned on if the layer needs it.

    Raises:
        NotApplicableError: the row's other arguments do not allow it.
    """
    case = case.with_settings(start="identity")
    hints = case.entry.hints()
    switches = [name for name in case.entry.parameters() if hints.get(name) is bool]
    problems: list[ModelConfigError] = []
    for settings in ({}, *({name: True} for name in switches)):
        candidate = case.with_settings(**settings)
        try:
            candidate.build()
        except ModelConfigError as error:
            problems.append(error)
        else:
            return candidate
    raise NotApplicableError(f"not with this row: {first_line(problems[0])}")
