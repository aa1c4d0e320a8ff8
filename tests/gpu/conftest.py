"""The device of these tests: the first GPU; the CPU for a rehearsal (YOLO_LOOM_DRY=1); else they are skipped."""

import os
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> torch.device:
    """The GPU, or the CPU in a rehearsal."""
    if torch.cuda.is_available():
        return torch.device("cuda:0")
    if os.environ.get("YOLO_LOOM_DRY"):
        return torch.device("cpu")
    pytest.skip("no CUDA device; YOLO_LOOM_DRY=1 runs these tests on the CPU")
