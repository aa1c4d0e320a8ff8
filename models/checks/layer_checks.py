"""Checks of a layer: shapes, state and dtypes, each with its remedy.

layer_case.py builds the layer and its input; training_checks.py and graph_checks.py check training and graphs.
"""

import copy
from typing import Any, cast

import torch
from torch import nn

from models.checks.checking import (
    ERRORS,
    CheckFailedError,
    NotApplicableError,
    Suite,
    demand,
    demand_close,
    demand_equal,
    demand_finite,
    first_line,
    run,
    shapes_of,
)
from models.checks.layer_case import (
    REPEATABLE,
    RUNS,
    SIZES,
    SIZES_HW,
    LayerCase,
    apply_to,
    randomise,
    size_text,
    tensors_of,
)
from models.deploy import fold_modules
from models.heads.detect import DetectionHead
from utils.geometry.anchors import NUM_BINS

FORM_CHECKS: Suite[LayerCase] = Suite()
FORMATS = (torch.float64, torch.bfloat16, torch.float16)
SMALLEST_HW = ((1, 1), (1, 6))
"""Sizes for layers that keep a map's size; layers that halve it need larger maps."""


@FORM_CHECKS.add(
    RUNS,
    "Give @layer an example=(…) (and example_inputs=(…)) that makes a small valid row; "
    "annotate the constructor's arguments; return tensors.",
)
def check_runs(case: LayerCase) -> str:
    """The layer can be built from its row and runs."""
    outputs = run(case.build().eval(), case.given(case.plain_hw))
    demand(bool(outputs), "gives no tensor")
    return f"{case.describe()}: {', '.join('x'.join(map(str, shape)) for shape in shapes_of(outputs))}"


@FORM_CHECKS.add(
    SIZES,
    "Take sizes from x.shape in forward(), pad or crop odd maps, pool adaptively, and divide by at least one value.",
    needs=(RUNS,),
)
def check_sizes(case: LayerCase) -> str:
    """Maps of any size (odd, long, tiny) give finite values; a layer that keeps an even size keeps every size."""
    if case.fixed_hw:
        raise NotApplicableError(f"the row fixes the size: {size_text(case.fixed_hw)}")
    module = case.build().eval()
    keeps_size = tensors_of(module(case.given((8, 8))))[0].shape[2:] == (8, 8)
    tried = [*SIZES_HW, (3, 17), *SMALLEST_HW[: len(SMALLEST_HW) * keeps_size]]
    problems = {}
    for size_hw in tried:
        try:
            output = run(module, case.given(size_hw))
            demand_finite(output, "values")
            height, width = tensors_of(output)[0].shape[2:]
            demand(
                not keeps_size or (height, width) == size_hw,
                f"gives {size_text((height, width))}, and keeps the size of 8 x 8",
            )
        except (CheckFailedError, *ERRORS) as error:
            problems[size_hw] = first_line(error)
    demand(
        not problems, "; ".join(f"{size_text(size_hw)}: {problem}" for size_hw, problem in list(problems.items())[:2])
    )
    return (
        f"{len(tried)} sizes, {size_text(max(tried, key=max))} to {size_text(min(tried, key=lambda hw: hw[0] * hw[1]))}"
    )


@FORM_CHECKS.add(
    "channels",
    "Make the rule given to @layer and forward() agree: "
    "same or keep for as many channels as come in, to for out_channels; later rows are built "
    "on what the rule says.",
    needs=(RUNS,),
)
def check_channels(case: LayerCase) -> str:
    """The output channels are those that the channel rule declares."""
    module, declared = case.build().eval(), case.declared
    for size_hw in case.sizes_hw:
        output = module(case.given(size_hw))
        found: Any = [tensor.shape[1] for tensor in tensors_of(output)]
        if case.head:
            head = cast(DetectionHead, module)
            masks = [head.num_masks] * 2 * (head.task == "segment")
            levels = [4 * NUM_BINS + case.num_classes] * head.levels
            demand(declared == [], f"a head's rule declares {declared}: expected [], nothing for later rows")
            demand(
                found == (levels + masks) * head.branches,
                f"gives maps of {found} channels: expected {(levels + masks) * head.branches}",
            )
        else:
            expected = declared if isinstance(declared, list) else [declared]
            nested = isinstance(output, list | tuple)
            demand(
                nested == isinstance(declared, list),
                f"gives {'a list of maps' if nested else 'one map'}, its rule declares {declared}",
            )
            demand(found == expected, f"gives {found} channels at {size_text(size_hw)}, its rule declares {expected}")
            demand(
                all(tensor.ndim == 4 and len(tensor) == 1 for tensor in tensors_of(output)),
                f"gives {shapes_of(tensors_of(output))}, not maps",
            )
    return f"{list(case.inputs)} -> {found}"


@FORM_CHECKS.add(
    "shapes",
    "Leave out .item(), .tolist(), .numpy() and if-conditions on values in forward(), and make new tensors with "
    "x.new_…, on the input's device.",
    needs=(RUNS,),
)
def check_shapes(case: LayerCase) -> str:
    """Shapes depend on shapes alone: the layer runs on the meta device, as a network does to find its strides."""
    module = case.build().eval()
    tensors = {name: tensor.to("meta") for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    found = shapes_of(
        tensors_of(torch.func.functional_call(module, tensors, (case.given(case.size_hw, device="meta"),)))
    )
    expected = shapes_of(run(module, case.given(case.size_hw)))
    demand(found == expected, f"{found} on the meta device, {expected} on the CPU")
    return "on the meta device"


@FORM_CHECKS.add(
    REPEATABLE,
    "Draw random numbers from torch's generator and only `if self.training` (as nn.Dropout does); "
    "not from random or numpy.",
    needs=(RUNS,),
)
def check_repeatable(case: LayerCase) -> str:
    """The same input gives the same output: always in evaluation, after the same seed in training."""
    module = case.build().eval()
    first, second = (tensors_of(module(case.given(case.size_hw, 2))) for _ in range(2))
    demand_equal(second, first, "a second evaluation")
    first, second = (run(case.build().train(), case.given(case.size_hw, 2)) for _ in range(2))
    demand_equal(second, first, "a second training pass after the same seed")
    return "bit for bit, in both modes"


@FORM_CHECKS.add(
    "modes",
    "Return the same maps in both modes, and change buffers only `if self.training`.",
    needs=(RUNS,),
)
def check_modes(case: LayerCase) -> str:
    """Training and evaluation give the same shapes, and evaluation changes no state."""
    module = case.build()
    trained = run(module.train(), case.given(case.size_hw, 2))
    demand_finite(trained, "values in training")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    evaluated = run(module.eval(), case.given(case.size_hw, 2))
    demand(
        shapes_of(trained) == shapes_of(evaluated),
        f"{shapes_of(trained)} in training, {shapes_of(evaluated)} in evaluation",
    )
    changed = [
        name
        for name, value in module.state_dict().items()
        if name not in before or not torch.equal(value, before[name])
    ]
    demand(not changed, f"evaluation changes {', '.join(changed)}")
    return "same shapes; evaluation leaves all buffers alone"


@FORM_CHECKS.add(
    "state",
    "Keep what forward() needs in parameters or registered buffers, or make it from the constructor's arguments alone.",
    needs=(RUNS, REPEATABLE),
)
def check_state(case: LayerCase) -> str:
    """The state dict is complete: another instance that loads it computes the same."""
    first, second = case.build(), case.build(seed=5)
    state = randomise(first).state_dict()
    second.load_state_dict(state)
    demand_equal(
        run(second.eval(), case.given(case.size_hw)),
        run(first.eval(), case.given(case.size_hw)),
        "another instance with the same state",
    )
    return f"{len(state)} tensors"


@FORM_CHECKS.add(
    "copies",
    "Store no tensor of a forward pass on self (self.last = x), or detach() it; "
    "keep no module twice under different owners.",
    needs=(RUNS, REPEATABLE),
)
def check_copies(case: LayerCase) -> str:
    """A layer can be copied after use, as the moving average of a training run does."""
    module = case.build().train()
    run(module, case.given(case.size_hw, 2))
    twin = copy.deepcopy(module)
    shared = {id(parameter) for parameter in twin.parameters()} & {id(parameter) for parameter in module.parameters()}
    demand(not shared, f"{len(shared)} parameters of the copy are the original's own")
    demand_equal(
        run(twin.eval(), case.given(case.size_hw, 2)), run(module.eval(), case.given(case.size_hw, 2)), "the copy"
    )
    return "after a training pass"


@FORM_CHECKS.add(
    "neighbours",
    "Reduce over channels and cells only, never over dimension 0; "
    "a reshape must keep dimension 0 apart from the others.",
    needs=(RUNS, REPEATABLE),
)
def check_neighbours(case: LayerCase) -> str:
    """An image's result does not depend on the other images of its batch."""
    module = randomise(case.build()).double().eval()
    together = case.given(case.size_hw, 3, torch.float64)
    alone = run(module, apply_to(together, lambda tensor: tensor[1:2].clone()))
    many = run(module, together)
    demand_close([tensor[1:2] for tensor in many], alone, 1e-9, 1e-12, "the second of three images, alone")
    return "in float64"


@FORM_CHECKS.add(
    "input kept",
    "Do not change the input in place: write x = x + y instead of x += y, and no inplace=True in the first operation.",
    needs=(RUNS,),
)
def check_input_kept(case: LayerCase) -> str:
    """The layer does not change its input, which other rows may read too."""
    for mode in (True, False):
        given = case.given(case.size_hw, 2)
        before = [tensor.clone() for tensor in tensors_of(given)]
        run(case.build().train(mode), given)
        for old, new in zip(before, tensors_of(given), strict=True):
            demand(
                torch.equal(old, new),
                f"changed in {'training' if mode else 'evaluation'}, by up to {(old - new).abs().max():.1e}",
            )
    return "in both modes"


@FORM_CHECKS.add(
    "number formats",
    "Make new tensors as x.new_… or with dtype=x.dtype, and cast back what needs float32: .to(x.dtype).",
    needs=(RUNS,),
)
def check_number_formats(case: LayerCase) -> str:
    """The layer works in float64, bfloat16 and float16, keeps the dtype and stays finite."""
    for dtype in FORMATS:
        outputs = run(case.build().to(dtype).eval(), case.given(case.size_hw, 2, dtype))
        for tensor in outputs:
            demand(tensor.dtype is dtype, f"{dtype} in, {tensor.dtype} out".replace("torch.", ""))
        demand_finite(outputs, f"{dtype}".replace("torch.", ""))
    return ", ".join(str(dtype).replace("torch.", "") for dtype in FORMATS)


@FORM_CHECKS.add(
    "channels last",
    "Write reshape() or flatten() instead of view(), and do not rely on strides.",
    needs=(RUNS, REPEATABLE),
)
def check_channels_last(case: LayerCase) -> str:
    """Maps in channels-last memory format give the same values."""
    module = randomise(case.build()).double().eval()
    expected = run(module, case.given(case.size_hw, 2, torch.float64))
    turned = apply_to(
        case.given(case.size_hw, 2, torch.float64), lambda tensor: tensor.to(memory_format=torch.channels_last)
    )
    demand_close(run(module.to(memory_format=torch.channels_last), turned), expected, 1e-9, 1e-10, "channels last")
    return "in float64"


@FORM_CHECKS.add(
    "folding",
    "fold() must keep what evaluation computes: "
    "scale by weight / sqrt(running_var + eps) in float64, carry the bias over, and do nothing the "
    "second time; see fold_batchnorm in models/common.py.",
    needs=(RUNS, REPEATABLE),
)
def check_folding(case: LayerCase) -> str:
    """The folded form for inference (normalisation and parallel branches merged) computes the same."""
    module = randomise(case.build()).double().eval()
    expected = run(module, case.given(case.size_hw, 2, torch.float64))
    parts = sum(hasattr(part, "fold") for part in module.modules())
    if not parts:
        raise NotApplicableError("nothing in it has a fold()")
    holder = nn.Sequential(module)
    for times in ("folded", "folded twice"):
        fold_modules(holder)
        demand_close(run(holder[0], case.given(case.size_hw, 2, torch.float64)), expected, 1e-9, 1e-10, times)
    return "1 part" if parts == 1 else f"{parts} parts"
