"""Checks of recorded graphs (compile, export) and of a layer's cost; each has its remedy."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.checks.checking import CheckFailedError, Suite, demand_close, first_line, run
from models.checks.layer_case import (
    ERRORS,
    REPEATABLE,
    RUNS,
    FlatForm,
    LayerCase,
    apply_to,
    randomise,
    size_text,
    tensors_of,
)
from models.parameters import count_parameters
from utils.quiet import quiet

GRAPH_CHECKS: Suite[LayerCase] = Suite()
RECORDED_HW, OTHER_HW = (9, 10), (20, 17)
RECORDED_BATCH, OTHER_BATCH = 2, 3
COST_HW = (64, 64)
"""Size of the largest map at which a layer's cost is measured."""
TOLERANCE = (1e-4, 1e-5)
"""rtol and atol of a recorded graph, in float32."""
TIMED_RUNS = 5


def recording_sizes(case: LayerCase) -> list[tuple[tuple[int, int], int, str]]:
    """Return sizes and batch sizes to run a graph at, most demanding first, each with what success proves."""
    if case.fixed_hw:
        return [(case.fixed_hw, OTHER_BATCH, f"any batch, at {size_text(case.fixed_hw)}, the row's one size")]
    recorded = case.plain_hw if case.size_hw == case.plain_hw else RECORDED_HW
    other = (16, 8) if recorded == case.plain_hw else OTHER_HW
    return [
        (other, OTHER_BATCH, "any batch and size"),
        (recorded, OTHER_BATCH, f"any batch, at {size_text(recorded)} only"),
    ]


def recorded_size(case: LayerCase) -> tuple[int, int]:
    """Return the map size at which graphs are recorded."""
    return case.fixed_hw or (case.plain_hw if case.size_hw == case.plain_hw else RECORDED_HW)


def how_free(case: LayerCase, module: nn.Module, graph: Callable[..., list[Tensor]]) -> str:
    """Run a recorded graph at other sizes; describe the sizes that it accepts.

    Args:
        graph: function of an input's tensors.
    Raises:
        CheckFailedError: it accepts only the recorded shape, or its values differ from the layer's.
    """
    size_hw, reason = recorded_size(case), ""
    given = case.given(size_hw, RECORDED_BATCH)
    torch.manual_seed(0)
    demand_close(graph(*tensors_of(given)), run(module, given), *TOLERANCE, "as recorded")
    for other_hw, batch, what in recording_sizes(case):
        given = case.given(other_hw, batch, seed=2)
        try:
            torch.manual_seed(0)
            found = graph(*tensors_of(given))
            demand_close(found, run(module, given), *TOLERANCE, f"{batch} images of {size_text(other_hw)}")
        except (CheckFailedError, *ERRORS) as error:
            reason = reason or first_line(error)
            continue
        return f"{what}: {reason}" if reason else what
    raise CheckFailedError(f"takes only {RECORDED_BATCH} images of {size_text(size_hw)}, as recorded: {reason}")


@GRAPH_CHECKS.add(
    "compile",
    "Keep Python out of forward(): no .item(), no conditions on values, no lists kept on self; "
    "the message names the line that breaks the graph.",
    needs=(RUNS, REPEATABLE),
    slow=True,
)
def check_compile(case: LayerCase) -> str:
    """torch.compile can record the layer (backend eager; generated code is not tested)."""
    module, breaks = case.build().eval(), ""
    given = case.given(case.size_hw, 2)
    expected = run(module, given)
    try:
        torch._dynamo.reset()
        with quiet(), torch.no_grad():
            found = run(torch.compile(module, backend="eager", fullgraph=True, dynamic=True), given)
    except torch._dynamo.exc.TorchDynamoException as error:
        breaks = first_line(error)
        torch._dynamo.reset()
        with quiet(), torch.no_grad():
            found = run(torch.compile(module, backend="eager", dynamic=True), given)
    finally:
        torch._dynamo.reset()
    demand_close(found, expected, *TOLERANCE, "compiled")
    return f"in several graphs: {breaks}" if breaks else "one whole graph"


@GRAPH_CHECKS.add(
    "export",
    "Compute shapes from x.shape without int() or len(), and choose by settings, not by values; "
    "torch.where in place of if.",
    needs=(RUNS, REPEATABLE),
    slow=True,
)
def check_export(case: LayerCase) -> str:
    """torch.export can export the layer with a dynamic batch and, where the layer allows it, a dynamic size."""
    module = randomise(case.build()).eval()
    given = case.given(recorded_size(case), RECORDED_BATCH)
    tensors = tuple(tensors_of(given))
    free = tuple(dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO) for _ in tensors)
    with quiet(), torch.no_grad():
        program = torch.export.export(FlatForm(module, given), tensors, dynamic_shapes=(free,)).module()
        return how_free(case, module, lambda *given: list(program(*given)))


@dataclass(frozen=True)
class Cost:
    """Cost for one input on a CPU: parameters, 10^9 operations, milliseconds, MiB kept for backward."""

    size_hw: tuple[int, int]
    parameters: int
    gflops: float
    forward_ms: float
    training_ms: float
    saved_mib: float

    def describe(self) -> str:
        """Return the figures as one clause for a table."""
        return (
            f"at {size_text(self.size_hw)}: {self.parameters:,} parameters, {self.gflops:.4g} GFLOPs, "
            f"{self.forward_ms:.2f} ms, "
            f"{self.training_ms:.2f} ms with backward, which keeps {self.saved_mib:.2f} MiB"
        )


def count_gflops(case: LayerCase, size_hw: tuple[int, int]) -> float:
    """Return the 10^9 operations of a layer, two per multiply-accumulate of convolutions and matrix products."""
    with torch.device("meta"):
        module = case.build().eval()
    with FlopCounterMode(display=False) as counter:
        module(case.given(size_hw, device="meta"))
    return counter.get_total_flops() / 1e9


def measure(case: LayerCase) -> Cost:
    """Measure a layer at COST_HW; times are medians."""
    size_hw = case.fixed_hw or COST_HW
    module = case.build()
    given = apply_to(case.given(size_hw), lambda tensor: tensor.requires_grad_())

    def forward() -> None:
        with torch.inference_mode():
            module(given)

    def train() -> None:
        outputs = tensors_of(module(apply_to(given, lambda tensor: tensor * 1)))
        total = sum((tensor.sum() for tensor in outputs), torch.zeros(()))
        total.backward()

    module.eval()
    forward_ms = median_ms(forward)
    module.train()
    training_ms = median_ms(train)
    kept = {parameter.data_ptr() for parameter in module.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in kept:
            saved[tensor.data_ptr()] = max(saved.get(tensor.data_ptr(), 0), tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = module(given)
    del outputs
    parameters = count_parameters(module)
    return Cost(size_hw, parameters, count_gflops(case, size_hw), forward_ms, training_ms, sum(saved.values()) / 2**20)


def median_ms(function: Callable[[], None]) -> float:
    """Return the median time of a function in milliseconds, after one call for warm-up."""
    function()
    times = []
    for _ in range(TIMED_RUNS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


@GRAPH_CHECKS.add(
    "cost",
    "The figures need a layer that runs on the meta device and trains: fix the failures above.",
    needs=(RUNS,),
    slow=True,
)
def check_cost(case: LayerCase) -> str:
    """The layer's cost can be measured."""
    return measure(case).describe()
