"""What the tests share: the folder of reference data, and small images to make data sets of."""

import os
from collections.abc import Callable
from pathlib import Path

if (
    "PYTEST_XDIST_WORKER_COUNT" in os.environ
):  # tests in parallel share the cores; set before torch and OpenCV are imported
    os.environ.setdefault(
        "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))
    )

import cv2
import numpy as np
import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data: YOLO_LOOM_SHARED, or `shared` beside the repository; skips without it."""
    folder = Path(os.environ.get("YOLO_LOOM_SHARED") or REPOSITORY.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}; set YOLO_LOOM_SHARED")
    return folder


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep label caches of read-only folders out of the user's own cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))


@pytest.fixture
def write_image() -> Callable[..., Path]:
    """Return `write_image(path, hw=(40, 60))`, which writes a grey image and its folders and returns the path."""

    def write(path: Path, hw: tuple[int, int] = (40, 60)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        done, content = cv2.imencode(path.suffix.lower(), np.full((*hw, 3), 114, np.uint8))
        assert done
        path.write_bytes(content.tobytes())
        return path

    return write
