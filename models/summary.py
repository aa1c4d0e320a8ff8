"""Summarize a network: shape, parameters and GFLOPs of each layer, and totals as trained and as deployed."""

from itertools import pairwise
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from models.parameters import count_parameters
from models.registry import find_layer
from models.yolo import Model
from utils.image_size import IMAGE_SIZE


def count_gflops(model: Model, size: int = IMAGE_SIZE) -> list[float]:
    """Return the GFLOPs of each row for one image of `size` x `size`.

    A multiply-accumulate of a convolution or matrix product counts as two operations.
    """
    totals = [0]
    with FlopCounterMode(display=False) as counter:
        handles = [
            module.register_forward_hook(lambda *_: totals.append(counter.get_total_flops())) for module in model.model
        ]
        try:
            model.trace(size)
        finally:
            for handle in handles:
                handle.remove()
    return [(after - before) / 1e9 for before, after in pairwise(totals)]


def summarize(model: Model) -> dict[str, Any]:
    """Return the description of a network that `--json` prints: totals, layers, and totals of the deployed form."""
    gflops = count_gflops(model)
    layers = [
        {
            "index": row.index,
            "name": f"model.{row.index}",
            "label": row.label,
            "role": find_layer(row.name).role,
            "from": row.numbered_from(),
            "module": row.name,
            "args": row.arguments,
            "output_shape": shape,
            "parameters": count_parameters(module),
            "gflops": gflops[row.index],
        }
        for row, module, shape in zip(model.rows, model.model, model.trace(IMAGE_SIZE), strict=True)
    ]
    deployed = model.deploy()
    return {
        "parameters": count_parameters(model),
        "gflops": sum(gflops),
        "stride": model.stride,
        "task": model.task,
        "nc": model.nc,
        "layers": layers,
        "deployed": {"parameters": count_parameters(deployed), "gflops": sum(count_gflops(deployed))},
    }


def format_shape(shape: Any) -> str:
    """Format an output shape without batch dimension, nested shapes joined by '+'; for a head, its lead branch."""
    if isinstance(shape, dict) and "main" in shape:
        return format_shape(shape["main"])
    if isinstance(shape, dict):
        maps, *others = shape
        return ", ".join([format_shape(shape[maps]), *(f"{key} {format_shape(shape[key])}" for key in others)])
    if shape and isinstance(shape[0], int):
        return "x".join(map(str, shape[1:]))
    return " + ".join(format_shape(part) for part in shape)
