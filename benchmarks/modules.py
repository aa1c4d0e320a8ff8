"""Time and memory of attention layers against plain forms of the same formulas, timed in turn.

`python -m benchmarks.modules [--threads 1] [--dtype float32] [--layout contiguous] [--only ACmix]`. Both forms must
give the same output. A ratio above 1 means that the layer is faster, or saves less memory, than the plain form. Forward
is inference; memory is what autograd saves for backward, without parameters and input.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.plain_modules import plain_acmix, plain_dynamic_conv, plain_focal_modulation, plain_gather_excite
from benchmarks.timing import in_turn, machine, report
from models.attention.acmix import ACmix
from models.attention.attention import FocalModulation
from models.attention.dynamic_conv import DynamicConv2d
from models.attention.gather_excite import GatherExcite

LEAST_SECONDS = 0.02
"""Shortest sample: faster functions are called several times."""


@dataclass(frozen=True)
class Case:
    """A layer, its plain form, and the shape of its input."""

    name: str
    make: Callable[[], nn.Module]
    plain: Callable[..., Tensor]
    shape: tuple[int, int, int, int]


CASES = (
    Case("ACmix", lambda: ACmix(64), plain_acmix, (2, 64, 40, 40)),
    Case("ACmix", lambda: ACmix(128), plain_acmix, (2, 128, 20, 20)),
    Case("ACmix, 8 heads", lambda: ACmix(128, heads=8), plain_acmix, (2, 128, 20, 20)),
    Case("ACmix, one image", lambda: ACmix(64), plain_acmix, (1, 64, 80, 80)),
    Case("DynamicConv, 3 x 3", lambda: DynamicConv2d(64, 64, 3), plain_dynamic_conv, (8, 64, 40, 40)),
    Case("DynamicConv, one image", lambda: DynamicConv2d(64, 64, 3), plain_dynamic_conv, (1, 64, 40, 40)),
    Case("DynamicConv, 1 x 1", lambda: DynamicConv2d(128, 128), plain_dynamic_conv, (8, 128, 20, 20)),
    Case("FocalModulation", lambda: FocalModulation(64), plain_focal_modulation, (2, 64, 40, 40)),
    Case("FocalModulation", lambda: FocalModulation(256), plain_focal_modulation, (2, 256, 20, 20)),
    Case("GE-theta-minus, global", lambda: GatherExcite(128), plain_gather_excite, (8, 128, 40, 40)),
    Case("GE-theta-minus, extent 8", lambda: GatherExcite(128, 8), plain_gather_excite, (8, 128, 40, 40)),
    Case("GE-theta, extent 4", lambda: GatherExcite(128, 4, "theta"), plain_gather_excite, (8, 128, 40, 40)),
)


def saved_bytes(run: Callable[[], Tensor], module: nn.Module, x: Tensor) -> int:
    """Return the bytes that autograd saves for backward: each storage once, without parameters and input."""
    apart = {tensor.untyped_storage().data_ptr() for tensor in (x, *module.parameters(), *module.buffers())}
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        _kept = run()
    return sum(size for pointer, size in storages.items() if pointer not in apart)


def timed(run: Callable[[], Tensor], upstream: Tensor) -> Callable[[], Mapping[str, float]]:
    """Return a function that times inference, and forward with backward.

    With one thread it measures processor time, which other processes hardly disturb.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def seconds(part: Callable[[], object]) -> float:
        start = clock()
        part()
        times = max(1, int(LEAST_SECONDS / max(clock() - start, 1e-6)))
        start = clock()
        for _ in range(times):
            part()
        return (clock() - start) / times

    def both() -> Mapping[str, float]:
        with torch.no_grad():
            forward = seconds(run)
        return {"forward": forward, "with backward": seconds(lambda: run().backward(upstream))}

    return both


def compare(case: Case, dtype: torch.dtype, layout: torch.memory_format, rounds: int) -> None:
    """Print the times of both forms, their ratios and the ratio of memory."""
    torch.manual_seed(0)
    module = case.make()
    x = torch.randn(case.shape).to(memory_format=layout).requires_grad_()

    def run(form: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return form(x)

    forms = {"plain": lambda: run(lambda x: case.plain(module, x)), "layer": lambda: run(module)}
    layer, plain = forms["layer"]().detach(), forms["plain"]().detach()
    torch.testing.assert_close(
        layer,
        plain,
        atol=5e-5 if dtype == torch.float32 else 0.1,
        rtol=1e-4 if dtype == torch.float32 else 0.05,
        check_dtype=False,
    )
    print(f"\n{case.name}, {' x '.join(map(str, case.shape))}")
    variants = {name: timed(form, torch.randn_like(form().detach())) for name, form in forms.items()}
    report(in_turn(variants, rounds, warmup=3), "plain")
    saved = {name: saved_bytes(form, module, x) / 2**20 for name, form in forms.items()}
    ratio = saved["plain"] / max(saved["layer"], 2**-10)
    sizes = f"{saved['plain']:>10.1f} MiB plain {saved['layer']:>10.1f} MiB layer"
    print(f"{'saved for backward':<28}{sizes} {ratio:>8.2f}x less")


def main() -> None:
    """Compare every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, torch.get_num_threads()], help="numbers of threads, one run each"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: mixed precision")
    parser.add_argument("--layout", choices=("contiguous", "channels_last"), default="contiguous")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="only cases whose name contains this text")
    options = parser.parse_args()
    layout = torch.channels_last if options.layout == "channels_last" else torch.contiguous_format
    for threads in dict.fromkeys(options.threads):
        torch.set_num_threads(threads)
        print(f"\n== {machine()}; {options.dtype}, {options.layout}")
        for case in CASES:
            if options.only.lower() in case.name.lower():
                compare(case, getattr(torch, options.dtype), layout, options.rounds)


if __name__ == "__main__":
    main()
