"""What a GPU computes is what the CPU computes: networks, layers, losses, NMS, training, resume and export."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.checks.layer_case import LayerCase, apply_to, randomise, tensors_of
from models.registry import registered_layers
from models.yolo import Model
from tests.check_golden import check_loss, network_outputs, seeded_tensor
from tests.cli.command_line import REPOSITORY, CommandLine, write_data, write_network
from tests.networks import seeded_images, tiny_model
from utils.checkpoint import import_state_dict
from utils.geometry.nms import non_max_suppression
from utils.losses.detection import build_loss
from utils.precision import choose_precision
from utils.weights.own_file import read_checkpoint

NETWORKS = ("gelan-t", "yolov9-t", "yolov8n", "yolo11n", "yolo11n-seg", "yolov9-t-FocalModulationBlock")
LAYERS = sorted(registered_layers())


@pytest.fixture
def exact() -> Any:
    """Turn TF32 off, so that float32 is float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def error(ours: Tensor, reference: Tensor) -> float:
    """Largest difference over the largest value."""
    ours, reference = ours.detach().cpu().double(), reference.detach().cpu().double()
    return float((ours - reference).abs().max() / reference.abs().max().clamp(min=1e-12))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_gives_the_same_on_both_devices(name, dtype, tolerance, device, exact):
    """Evaluation outputs, raw maps of every branch included."""
    torch.manual_seed(0)
    model = Model(f"{name}.yaml").to(dtype).eval()
    randomise(model)
    image = seeded_images(1, 3, 128, 160, dtype=dtype)
    expected = network_outputs(model, image)
    found = network_outputs(model.to(device), image.to(device))
    assert expected
    for key, value in expected.items():
        assert error(found[key], value) < tolerance, key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_networks(dtype, device, exact, shared):
    """The original's numbers, in double and single precision."""
    files = sorted((shared / "golden" / "networks").glob("*.json"))
    assert files
    checked = 0
    for path in files:
        golden = json.loads(path.read_text())
        if golden["parameters"] > 30e6 or golden["cfg"].startswith("yolo26"):
            continue
        try:
            model = Model(f"{golden['cfg']}.yaml").double().eval()
        except ValueError:
            continue
        report = import_state_dict(model, {name: seeded_tensor(name, shape) for name, shape in golden["state_dict"]})
        assert not report.missing
        image = torch.from_numpy(np.random.RandomState(golden["input"]["seed"]).uniform(0, 1, golden["input"]["shape"]))
        found = network_outputs(model.to(device, dtype), image.to(device, dtype))
        for name, reference in golden["output"].items():
            if isinstance(reference, dict) and name in found:
                values = found[name].flatten().cpu().double().numpy()[reference["index"]]
                wrong = np.abs(values - np.array(reference["value"])).max() / max(reference["absmax"], 1e-12)
                assert wrong < (1e-6 if dtype is torch.float64 else 2e-3), (path.name, name)
                checked += 1
    assert checked


def test_golden_losses(device, shared):
    """The original's losses on the CPU of this machine; the next test carries them to the device."""
    assert check_loss(shared / "golden" / "loss" / "tal_detect.json") < 1e-6


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_the_loss_and_its_gradient_are_the_same_on_both_devices(branches, device, exact):
    model = tiny_model(branches).double()
    batch = {"images": seeded_images(3, 3, 64, 64, dtype=torch.float64)}
    batch["targets"] = torch.tensor([[0, 1, 0.4, 0.4, 0.3, 0.3], [2, 0, 0.6, 0.5, 0.5, 0.4]], dtype=torch.float64)
    results = []
    for place in (torch.device("cpu"), device):
        network = copy.deepcopy(model).to(place)
        total, items = build_loss(network)(network(batch["images"].to(place)), batch)
        total.backward()
        gradient = torch.cat([p.grad.flatten().cpu() for p in network.parameters() if p.grad is not None])
        results.append((total, items, gradient))
    assert error(results[1][0], results[0][0]) < 1e-10
    assert error(results[1][2], results[0][2]) < 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_runs_forward_and_backward_in_16_bits(name, dtype, device):
    """Under autocast: finite, and near the CPU's float32 within what 16 bits allow."""
    case = LayerCase.of_example(registered_layers()[name])
    if case.head:
        pytest.skip("heads are tested in whole networks")
    if dtype is torch.float16 and device.type == "cpu":
        dtype = torch.bfloat16
    if name == "TimmBackbone":
        pytest.importorskip("timm")
    module = case.build().eval()
    given = case.given(case.size_hw, 2)
    expected = tensors_of(module(given))
    module = copy.deepcopy(module).to(device)
    moved = apply_to(given, lambda tensor: tensor.to(device).requires_grad_())
    with torch.autocast(device.type, dtype=dtype):
        found = tensors_of(module(moved))
    assert len(found) == len(expected) > 0
    for ours, reference in zip(found, expected, strict=True):
        assert torch.isfinite(ours).all()
        assert error(ours, reference) < 0.15
    total = sum(tensor.float().square().mean() for tensor in found)
    if total.requires_grad:
        total.backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("agnostic", [False, True])
def test_suppression_keeps_the_same_boxes(agnostic, device):
    generator = torch.Generator().manual_seed(0)
    prediction = torch.rand(3, 4 + 5, 900, generator=generator)
    prediction[:, :2] *= 600
    prediction[:, 2:4] = 20 + 80 * prediction[:, 2:4]
    settings = (5, 0.3, 0.5, 300)
    expected = non_max_suppression(prediction, *settings, agnostic=agnostic, multi_label=True)
    found = non_max_suppression(prediction.to(device), *settings, agnostic=agnostic, multi_label=True)
    assert sum(map(len, expected)) > 100
    for ours, reference in zip(found, expected, strict=True):
        assert torch.equal(ours.cpu(), reference)


@pytest.mark.parametrize("fold", [False, True])
def test_a_deployed_network_gives_the_same(fold, device, exact):
    model = Model("yolov9-t.yaml").eval()
    randomise(model)
    model = model.to(device)
    image = seeded_images(1, 3, 96, 96).to(device)
    with torch.inference_mode():
        assert error(model.deploy(fold=fold)(image), model(image)) < 1e-4


SHORT = ("--epochs", 2, "--batch", 4, "--img", 64, "--noplots", "--workers", 0, "--exist-ok")


@dataclass
class Trainer:
    """Runs trainings of seconds, each in a folder of its own."""

    cli: CommandLine
    folder: Path
    flags: tuple[object, ...]

    def words(self, name: str, *flags: object) -> list[str]:
        """Return the command line of a training."""
        folder = self.folder
        words = ("train.py", "--cfg", write_network(folder, 2), "--data", folder / "data" / "data.yaml")
        return [*map(str, (*words, "--project", folder, "--name", name, *self.flags, *flags))]

    def __call__(self, name: str, *flags: object) -> dict[str, Any]:
        """Run a training, and return the content of its last.pt."""
        self.cli(*self.words(name, *flags)).done()
        return self.last(name)

    def last(self, name: str) -> dict[str, Any]:
        """Return the content of a training's last.pt."""
        return read_checkpoint(self.folder / name / "weights" / "last.pt")


@pytest.fixture
def trainer(tmp_path: Path, device: torch.device) -> Iterator[Trainer]:
    """A trainer on the device."""
    write_data(tmp_path / "data")
    cli = CommandLine(tmp_path)
    yield Trainer(cli, tmp_path, (*SHORT, "--device", "0" if device.type == "cuda" else "cpu"))
    cli.close()


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_run_that_is_resumed_ends_as_one_that_was_not(amp, trainer, device):
    """A run that is told to stop in its first epoch and resumed: weights, optimizer, scaler and random states."""
    if amp == "fp16" and device.type == "cpu":
        pytest.skip("the CPU has no fp16 training")
    whole = trainer("whole", "--amp", amp)
    trainer("part", "--amp", amp, "--epochs", 1)
    resumed = trainer.words("part")[:1] + ["--resume", str(trainer.folder / "part"), "--epochs", "2"]
    trainer.cli(*resumed).done()
    part = trainer.last("part")
    assert part["epoch"] == whole["epoch"] == 2
    assert len(part["rng"]["cuda"]) == (torch.cuda.device_count() if device.type == "cuda" else 0)
    assert part["scaler"] == whole["scaler"]
    assert len(part["model"]) == len(whole["model"]) > 10


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_the_same_command_gives_the_same_weights(amp, trainer, device):
    if amp == "fp16" and device.type == "cpu":
        pytest.skip("the CPU has no fp16 training")
    first, second = trainer("first", "--amp", amp)["model"], trainer("second", "--amp", amp)["model"]
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_autobatch_names_a_batch_that_trains(trainer, device):
    if device.type == "cpu":
        pytest.skip("--batch -1 is for GPUs")
    assert trainer("fits", "--batch", -1)["options"]["batch"] >= 1


def test_one_rank_under_torchrun_trains_as_a_process_alone(trainer, device):
    """DistributedDataParallel with one rank, NCCL on a GPU: the same weights within rounding."""
    alone = trainer("alone", "--amp", "off")["model"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    command = [*torchrun, *trainer.words("rank", "--amp", "off")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ranked = trainer.last("rank")["model"]
    for name, value in alone.items():
        torch.testing.assert_close(ranked[name], value, rtol=1e-4, atol=1e-5)


def test_mixed_precision_trains(device):
    """The loss of a tiny network falls in every number format of the device."""
    formats = ("off", "bf16", "fp16") if device.type == "cuda" else ("off", "bf16")
    for amp in formats:
        torch.manual_seed(0)
        model = tiny_model(1, width=16)
        precision = choose_precision("0" if device.type == "cuda" else "cpu", amp)
        model = precision.place(model).train()
        loss, scaler = build_loss(model), torch.amp.GradScaler(device.type, enabled=precision.needs_scaler)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        images = torch.full((2, 3, 64, 64), 30, dtype=torch.uint8)
        images[:, :, 16:48, 8:40] = 220
        targets = torch.tensor([[number, number % 3, 24 / 64, 0.5, 0.5, 0.5] for number in range(2)])
        totals = []
        for _ in range(30):
            pixels = precision.images(images)
            with precision.autocast():
                outputs = model(pixels)
            total, _ = loss(outputs, {"images": pixels, "targets": targets})
            optimizer.zero_grad()
            scaler.scale(total).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 10)
            scaler.step(optimizer)
            scaler.update()
            totals.append(total.item())
        assert totals[-1] < 0.8 * totals[0], amp
