"""Inference of deployed networks, with decoding and NMS: the default path against fp32 contiguous, timed in turn.

`python -m benchmarks.inference [--cfg gelan-t.yaml gelan-c.yaml] [--batch 1] [--img 640]`
"""

import argparse
from collections.abc import Callable, Mapping

import torch

from benchmarks.timing import Clock, in_turn, machine, report
from models.yolo import Model
from utils.geometry.nms import non_max_suppression
from utils.precision import choose_precision


def inference(cfg: str, amp: str, batch: int, size: int) -> Callable[[], Mapping[str, float]]:
    """Return a function that runs one batch and returns the seconds of its parts."""
    torch.manual_seed(0)
    precision = choose_precision("cpu", amp)
    network = Model(cfg).eval().deploy()
    model = precision.place_for_inference(network)
    pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)

    def run() -> Mapping[str, float]:
        clock = Clock()
        with torch.inference_mode():
            images = precision.images(pixels, precision.dtype or torch.float32)
            prediction = model(images)
            clock.lap("network")
            non_max_suppression(prediction, network.nc, 0.25, 0.45)
            clock.lap("NMS")
        return clock.total()

    return run


def main() -> None:
    """Print the times of both paths and their ratio for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg", nargs="+", default=["gelan-t.yaml", "gelan-c.yaml"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--img", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    default = choose_precision("cpu").describe()
    print(f"{machine()}; batch {options.batch}, {options.img} x {options.img}; default path: {default}")
    paths = {"fp32 contiguous": "off", "default": "auto"}
    for cfg in options.cfg:
        print(cfg)
        variants = {name: inference(cfg, amp, options.batch, options.img) for name, amp in paths.items()}
        report(in_turn(variants, options.rounds), "fp32 contiguous")


if __name__ == "__main__":
    main()
