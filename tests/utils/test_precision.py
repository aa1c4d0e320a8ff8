"""What a run computes in: the choice, and what follows from it."""

import contextlib
import copy
from pathlib import Path

import pytest
import torch

from tests.networks import seeded_images, tiny_model
from tests.saying import assert_says
from utils import precision
from utils.errors import SettingsError
from utils.precision import Precision, choose_device, choose_precision, cpu_has_fast_bf16, worker_count

CPU = torch.device("cpu")


@pytest.fixture(params=[True, False])
def fast_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(precision, "cpu_has_fast_bf16", lambda: request.param)
    return request.param


def test_auto_on_a_cpu_is_bf16_where_it_is_fast(fast_bf16: bool) -> None:
    chosen = choose_precision("cpu")
    assert chosen == Precision(CPU, torch.bfloat16 if fast_bf16 else None, channels_last=fast_bf16)


def test_explicit_choices() -> None:
    assert choose_precision("cpu", "off") == Precision(CPU, None, channels_last=False)
    assert choose_precision("cpu", "bf16") == Precision(CPU, torch.bfloat16, channels_last=True)
    for amp, facts in (("fp16", ("GPU", "CPU", "bf16", "off")), ("fp8", ("auto", "off", "bf16", "fp16"))):
        with pytest.raises(SettingsError) as caught:
            choose_precision("cpu", amp)
        assert_says(caught.value, f"--amp {amp}", *facts)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu sse amx_bf16", True), ("avx512_bf16", True), ("avx2 avx512f amx_int8", False), ("", False)],
)
def test_cpu_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    monkeypatch.setattr(precision, "Path", lambda _: tmp_path / "cpuinfo")
    assert cpu_has_fast_bf16() is expected


def test_no_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "Path", lambda _: tmp_path / "none")
    assert cpu_has_fast_bf16() is False


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs that have bf16, as far as the choice looks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)


@pytest.mark.usefixtures("gpus")
def test_devices_with_gpus() -> None:
    assert choose_device("") == torch.device("cuda")
    assert choose_device("1") == torch.device("cuda:1")
    assert choose_device("cuda:0") == torch.device("cuda:0")
    assert choose_device("cpu") == CPU
    for device, fact in (("2", "2 CUDA devices"), ("0,1", "one device")):
        with pytest.raises(SettingsError) as caught:
            choose_device(device)
        assert_says(caught.value, f"--device {device}", fact)
    assert choose_precision("", "auto").dtype is torch.bfloat16
    assert choose_precision("", "fp16").needs_scaler
    assert not choose_precision("", "bf16").needs_scaler


@pytest.mark.usefixtures("gpus")
def test_old_gpus_use_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    assert choose_precision("0", "auto") == Precision(torch.device("cuda:0"), torch.float16, channels_last=True)


def test_devices_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("") == choose_device("cpu") == CPU
    for device in ("0", "cuda", "mps", "cpu:1"):
        with pytest.raises(SettingsError) as caught:
            choose_device(device)
        assert_says(caught.value, f"--device {device}", "not present", "--device cpu")
    for device in ("gpu", "cuda:x"):
        with pytest.raises(SettingsError) as caught:
            choose_device(device)
        assert_says(caught.value, f"--device {device}", "unknown", "cpu", "mps", "CUDA")


def test_images() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    plain = Precision(CPU, None, channels_last=False).images(images)
    assert plain.dtype is torch.float32
    assert plain[0, :, 0, 0].tolist() == pytest.approx([0, 0.2, 1])
    assert plain.is_contiguous()
    fast = Precision(CPU, torch.bfloat16, channels_last=True)
    assert fast.images(images).dtype is torch.float32
    assert fast.images(images).is_contiguous(memory_format=torch.channels_last)
    assert fast.images(images, torch.bfloat16).dtype is torch.bfloat16


def test_placing() -> None:
    fast = Precision(CPU, torch.bfloat16, channels_last=True)
    model = fast.place(tiny_model())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.model[1].conv.weight.is_contiguous(memory_format=torch.channels_last)
    before = tiny_model().eval()
    model = fast.place_for_inference(copy.deepcopy(before))
    last = {name for name, _ in model.named_parameters() if name.split(".")[-2] == "2"}
    assert {parameter.dtype for name, parameter in model.named_parameters() if name not in last} == {torch.bfloat16}
    assert len(last) == 12  # box and class towers of three levels, weight and bias
    for name in last:
        assert torch.equal(model.get_parameter(name), before.get_parameter(name)), (
            "the towers' last layers keep every digit"
        )
    with torch.inference_mode():
        assert model(fast.images(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.bfloat16)).dtype is torch.float32
    slow = Precision(CPU, None, channels_last=False)
    assert {parameter.dtype for parameter in slow.place_for_inference(tiny_model()).parameters()} == {torch.float32}


def test_bf16_inference_is_close_to_fp32() -> None:
    model = tiny_model().eval()
    images = (seeded_images(1, 3, 64, 64) * 255).byte()
    fast = Precision(CPU, torch.bfloat16, channels_last=True)
    with torch.inference_mode():
        expected = model(Precision(CPU, None, False).images(images))
        found = fast.place_for_inference(model.deploy())(fast.images(images, torch.bfloat16))
    assert found[:, :4].sub(expected[:, :4]).abs().max() < 2
    assert found[:, 4:].sub(expected[:, 4:]).abs().max() < 0.02


def test_autocast() -> None:
    assert isinstance(Precision(CPU, None, False).autocast(), contextlib.nullcontext)
    with Precision(CPU, torch.bfloat16, True).autocast():
        assert torch.nn.functional.linear(torch.zeros(1, 2), torch.zeros(3, 2)).dtype is torch.bfloat16


def test_describe() -> None:
    assert Precision(CPU, None, False).describe().endswith("fp32, contiguous")
    described = Precision(CPU, torch.bfloat16, True).describe()
    assert described == f"cpu, {torch.get_num_threads()} threads, bf16 mixed precision, channels_last"


def test_worker_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert [worker_count(requested) for requested in (-1, 0, 2, 3, 8)] == [0, 0, 2, 3, 3]
