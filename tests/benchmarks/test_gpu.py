"""The GPU benchmark is rehearsed on the CPU, and keeps what is done when it is cut off."""

import json
import time

import pytest

from benchmarks import gpu
from benchmarks.gpu import Report


def test_every_result_is_written_at_once_and_an_error_ends_nothing(tmp_path):
    report = Report(tmp_path, True, time.monotonic() + 100)
    report.add("speed", lambda: {"images/s": 12.5}, network="gelan-t")

    def broken() -> dict[str, float]:
        raise RuntimeError("CUDA out of memory\nmore")

    report.add("speed", broken, network="gelan-c")
    report.deadline = 0.0
    report.add("speed", lambda: {"images/s": 1.0}, network="gelan-e")
    first, second, third = json.loads((tmp_path / "gpu.json").read_text())["parts"]["speed"]
    assert first["images/s"] == 12.5
    assert second["error"] == "RuntimeError: CUDA out of memory"
    assert "not begun" in third["error"]
    assert "gelan-c" in (tmp_path / "gpu.md").read_text()


@pytest.mark.slow
def test_speed_latency_and_layers_are_measured_on_the_cpu_too(tmp_path):
    report = Report(tmp_path, True, time.monotonic() + 500)
    for part in (gpu.training_speed, gpu.inference_latency, gpu.attention_layers):
        part(report)
    assert len(report.rows) == 3
    rows = [row for rows in report.rows.values() for row in rows]
    assert len(rows) == 3
    assert [row for row in rows if "error" in row] == []
    assert report.rows["training speed"][0]["images/s"] > 0


def test_without_a_gpu_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    assert "--dry" in capsys.readouterr().err
