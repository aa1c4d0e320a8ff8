"""Checks of a whole network, besides those of its layers; each has its remedy."""

import copy
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from models.checks.checking import Suite, demand, demand_close, demand_equal, demand_finite, run, shapes_of
from models.checks.graph_checks import median_ms
from models.checks.layer_case import randomise, tensors_of
from models.checks.training_checks import RATE, STEPS, grouped_exactly_once
from models.parameters import count_parameters
from models.summary import count_gflops
from models.yolo import Model
from utils.image_size import IMAGE_SIZE
from utils.wording import listed

NETWORK_CHECKS: Suite[Model] = Suite()
RUNS, COPIES = "runs", "copies"


def image_size(model: Model) -> int:
    """Return the side of the images for the checks: small, unless a layer accepts only one size."""
    fixed = any(getattr(module, "size_hw", None) for module in model.modules())
    return IMAGE_SIZE if fixed else max(2 * model.multiple, 64)


def random_images(model: Model, batch: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Return seeded images."""
    size = image_size(model)
    return torch.rand(
        batch, model.channels, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def by_row(model: Model, names: Iterable[str], most: int = 6) -> str:
    """Describe parameters, grouped by row."""
    rows: dict[int, list[str]] = defaultdict(list)
    for name in names:
        _, index, rest = name.split(".", 2)
        rows[int(index)].append(rest)
    shown = [f"layer {index} ({model.rows[index].name}): {listed(parts, 3)}" for index, parts in rows.items()]
    more = len(shown) - most
    return "; ".join(shown[:most]) + (f"; and {more} layers more" if more > 0 else "")


@NETWORK_CHECKS.add(RUNS, "See which of the layers below fails.")
def check_runs(model: Model) -> str:
    """The network runs, also on the meta device, which gives the shapes of all rows."""
    model.trace(IMAGE_SIZE)
    images = random_images(model, 1)
    demand_finite(run(model.eval(), images), "predictions")
    return (
        f"{len(model.rows)} layers, task {model.task}, {model.nc} classes, strides {', '.join(map(str, model.stride))}"
    )


@NETWORK_CHECKS.add(
    COPIES,
    "A layer keeps a tensor of a forward pass, or shares a parameter: see 'copies' of the layers below.",
    needs=(RUNS,),
)
def check_copies(model: Model) -> str:
    """A network can be copied after training, as the moving average does."""
    used = copy.deepcopy(model).train()
    run(used, random_images(model, 2))
    twin = copy.deepcopy(used)
    demand_equal(run(twin.eval(), random_images(model, 1)), run(used.eval(), random_images(model, 1)), "the copy")
    return "after a training pass"


@NETWORK_CHECKS.add(
    "long images",
    "A layer fixes a size, or reshapes by height or width: take sizes from x.shape in forward().",
    needs=(RUNS,),
)
def check_long_images(model: Model) -> str:
    """Images need not be square."""
    if image_size(model) == IMAGE_SIZE:
        return f"a layer accepts only one size: the network runs at {IMAGE_SIZE} x {IMAGE_SIZE}"
    step = model.multiple
    demand_finite(run(model.eval(), torch.rand(1, model.channels, 2 * step, 3 * step)), "predictions")
    return f"{2 * step} x {3 * step}"


@NETWORK_CHECKS.add(
    "gradients",
    "No branch of the head uses this row's output: name it in a later row's 'from', or remove it; "
    "if the row's own check fails too, fix that first.",
    needs=(RUNS, COPIES),
)
def check_gradients(model: Model) -> str:
    """A finite gradient reaches every trainable parameter of the network."""
    model = copy.deepcopy(model).train()
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD(trainable.values(), lr=RATE)
    reached: dict[str, int] = {}
    for step in range(1, STEPS + 1):
        outputs = run(model, random_images(model, 2, seed=step))
        generator = torch.Generator().manual_seed(step + 1)
        optimizer.zero_grad()
        losses = ((tensor * torch.randn(tensor.shape, generator=generator)).mean() for tensor in outputs)
        sum(losses, torch.zeros(())).backward()
        broken = [
            name
            for name, parameter in trainable.items()
            if parameter.grad is not None and not parameter.grad.isfinite().all()
        ]
        demand(not broken, f"inf or nan in the gradients of {by_row(model, broken)}")
        for name, parameter in trainable.items():
            if name not in reached and parameter.grad is not None and parameter.grad.abs().sum() > 0:
                reached[name] = step
        if len(reached) == len(trainable):
            break
        optimizer.step()
    missing = [name for name in trainable if name not in reached]
    demand(not missing, f"{len(missing)} of {len(trainable)} parameters get none: {by_row(model, missing)}")
    late = [name for name, step in reached.items() if step > 1]
    return f"{len(trainable)} of {len(trainable)} parameters, " + (
        f"those of {by_row(model, late)} from a later step on" if late else "at once"
    )


@NETWORK_CHECKS.add(
    "optimizer",
    "Register everything that is trained: self.name = nn.Parameter(…), modules in nn.ModuleList or nn.ModuleDict.",
    needs=(RUNS, COPIES),
)
def check_optimizer(model: Model) -> str:
    """Every trainable parameter is in exactly one group of the optimizer."""
    model = copy.deepcopy(model).train()
    return grouped_exactly_once(model, run(model, random_images(model, 2)))


@NETWORK_CHECKS.add(
    "deploy",
    "See 'folding' of the layers below; a row that the lead branch needs must be in its 'from'.",
    needs=(RUNS, COPIES),
)
def check_deploy(model: Model) -> str:
    """The form for inference (lead branch only, folded) predicts the same."""
    whole = randomise(copy.deepcopy(model)).double().eval()
    images = random_images(model, 2, torch.float64)
    deployed = whole.deploy().eval()
    demand_close(run(deployed, images), run(whole, images), 1e-7, 1e-7, "deployed")
    rebuilt = shapes_of(tensors_of(Model(deployed.config)(images.float())["main"]))
    expected = shapes_of(tensors_of(deployed.train()(images)["main"]))
    demand(rebuilt == expected, f"its configuration builds another network: {rebuilt}, expected {expected}")
    return f"{len(whole.rows)} layers become {len(deployed.rows)}"


@NETWORK_CHECKS.add(
    "cost",
    "The figures need a network that runs on the meta device: see the layers below.",
    needs=(RUNS, COPIES),
    slow=True,
)
def check_cost(model: Model) -> str:
    """The network's cost can be measured."""
    images = torch.rand(1, model.channels, IMAGE_SIZE, IMAGE_SIZE)
    deployed = model.deploy().eval()

    def predict() -> None:
        with torch.inference_mode():
            deployed(images)

    return (
        f"{count_parameters(model):,} parameters, {sum(count_gflops(model)):.2f} GFLOPs; "
        f"deployed {count_parameters(deployed):,}, "
        f"{sum(count_gflops(deployed)):.2f}, {median_ms(predict):.0f} ms an image of {IMAGE_SIZE} x {IMAGE_SIZE}"
    )
