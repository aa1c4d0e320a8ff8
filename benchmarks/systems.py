"""Networks with a module beside their bases: parameters, GFLOPs and time an image, the networks in turn.

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
"""Each base, and the networks made of it."""


def main() -> None:
    """Print the size of every network, then the times of each group, against its base."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--img", type=int, default=320)
    parser.add_argument("--nc", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()
    print(
        f"{machine()}; batch 1, {options.img} x {options.img}, {options.nc} classes, deployed; {choose_precision('cpu').describe()}"
    )
    for base, systems in SYSTEMS.items():
        for name in (base, *systems):
            with torch.device("meta"):
                model = Model(name, nc=options.nc)
                trained, deployed = (
                    (count_parameters(form), sum(count_gflops(form, options.img))) for form in (model, model.deploy())
                )
            print(
                f"{name:<32}{trained[0]:>11,} parameters {trained[1]:>6.2f} GFLOPs, deployed {deployed[0]:>11,} {deployed[1]:>6.2f}"
            )
        report(
            in_turn({name: inference(name, "auto", 1, options.img) for name in (base, *systems)}, options.rounds), base
        )


if __name__ == "__main__":
    main()
