"""Networks with an attention layer against their bases: parameters, GFLOPs and time per image, timed in turn.

`python -m benchmarks.systems [--img 320] [--nc 3]`
"""

import argparse

import torch

from benchmarks.inference import inference
from benchmarks.timing import in_turn, machine, report
from models.parameters import count_parameters
from models.summary import count_gflops
from models.yolo import Model
from utils.precision import choose_precision

SYSTEMS = {
    "yolov8n": ("yolov8n-GatherExcite", "yolov8n-ACmix"),
    "yolo11n": ("yolo11n-FocalModulation", "yolo11n-DynamicConv"),
    "yolov9-t": ("yolov9-t-FocalModulationBlock",),
}
"""Each base with the networks made from it."""


def size_of(model: Model, size: int) -> str:
    """Return parameters and GFLOPs in words."""
    return f"{count_parameters(model):>11,} parameters {sum(count_gflops(model, size)):>6.2f} GFLOPs"


def main() -> None:
    """Print the size of every network, then each network's time against that of its base."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--img", type=int, default=320)
    parser.add_argument("--nc", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()
    setting = f"batch 1, {options.img} x {options.img}, {options.nc} classes, deployed"
    print(f"{machine()}; {setting}; {choose_precision('cpu').describe()}")
    for base, systems in SYSTEMS.items():
        for name in (base, *systems):
            with torch.device("meta"):
                model = Model(name, nc=options.nc)
                trained, deployed = (size_of(form, options.img) for form in (model, model.deploy()))
            print(f"{name:<32}{trained}, deployed {deployed}")
        report(
            in_turn({name: inference(name, "auto", 1, options.img) for name in (base, *systems)}, options.rounds), base
        )


if __name__ == "__main__":
    main()
