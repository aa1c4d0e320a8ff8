"""Run by torchrun in test_ranks.py: each rank prints what it was given by the others."""

import json
import sys
from pathlib import Path

import torch

from utils import ranks
from utils.cli import run
from utils.errors import SettingsError


def main() -> None:
    """Exchange things, or fail as the first argument says."""
    what = sys.argv[1]
    with ranks.joined(torch.device("cpu")) as launch:
        if what == "differ":
            ranks.check_same("plug-in", f"digest{launch.rank}", "use one file")
        if what == "raise" and launch.rank == 1:
            raise SettingsError("the picture cannot be read")
        if what == "hang":
            ranks.summed(torch.ones(1))
            if launch.rank == 1:
                raise OSError(28, "No space left on device", "last.pt")
        order = []
        with ranks.first_goes_first():
            order = ranks.size()
        shared = torch.full((2,), float(launch.rank))
        ranks.share_from_first([shared])
        found = {
            "rank": launch.rank,
            "size": order,
            "sum": ranks.summed(torch.tensor([launch.rank + 1.0])).tolist(),
            "gathered": ranks.gathered(launch.rank * 10),
            "first": ranks.from_first(f"of {launch.rank}"),
            "shared": shared.tolist(),
        }
        Path(sys.argv[2], f"{launch.rank}.json").write_text(json.dumps(found))
        print("printed by the first rank only", flush=True)


if __name__ == "__main__":
    sys.exit(run(main))
