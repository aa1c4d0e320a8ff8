"""The networks that come with the repository: each builds, and its header tells the truth."""

import re
from pathlib import Path

import pytest
import yaml

import models
from models.summary import count_gflops, count_parameters
from tests.networks import meta_deployed, meta_model
from utils.errors import did_you_mean

FOLDER = Path(models.__file__).parent / "detect"
PATHS = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
NETWORKS = (
    *("gelan-t", "gelan-s", "gelan-m", "gelan-c", "gelan-e"),
    *("yolov9-t", "yolov9-s", "yolov9-m", "yolov9-c", "yolov9-e", "yolov9-cf"),
    *("gelan-t-FocalModulationBlock", "yolov9-t-FocalModulationBlock", "yolov9-c-FocalModulationBlock"),
)
QUICK = ("gelan-t", "gelan-c", "yolov9-c-FocalModulationBlock")
"""Networks whose operations are counted in every run of the tests; the others' where slow tests run."""

HEADER = re.compile(
    r"# as trained: (?P<parameters>[\d,]+) parameters, (?P<gflops>[\d.]+) GFLOPs\n"
    r"# as deployed: (?P<deployed_parameters>[\d,]+) parameters, (?P<deployed_gflops>[\d.]+) GFLOPs \(80 classes, 640 x 640\)\n"
)

PARAMETERS = {
    "gelan-t": 2_442_640, "gelan-s": 7_226_208, "gelan-m": 20_124_000, "gelan-c": 25_498_752, "gelan-e": 58_114_432,
    "yolov9-t": 3_717_680, "yolov9-s": 9_804_512, "yolov9-m": 32_878_432, "yolov9-c": 51_182_080, "yolov9-e": 69_529_664,
    "yolov9-cf": 56_734_400, "yolov9-c-FocalModulationBlock": 54_439_427,
}  # fmt: skip
DEPLOYED = {  # parameters, GFLOPs at 640: the published ones of both families
    "t": (2_407_632, 9.82), "s": (7_105_888, 26.38), "m": (19_978_672, 76.31), "c": (25_288_768, 102.14), "e": (57_345_920, 188.95),
}  # fmt: skip


def test_all_are_tested() -> None:
    assert sorted(PATHS) == sorted(NETWORKS), did_you_mean(str(set(PATHS) ^ set(NETWORKS)), NETWORKS)


def header(name: str) -> re.Match[str]:
    found = HEADER.search(PATHS[name].read_text(encoding="utf-8"))
    assert found, f"{name}: two lines with parameters and GFLOPs, as trained and as deployed"
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_header_is_true(name: str) -> None:
    text = PATHS[name].read_text(encoding="utf-8")
    assert f"# python train.py --cfg {name}.yaml\n" in text
    assert yaml.safe_load(text)["nc"] == 80
    assert header(name)["parameters"] == f"{count_parameters(meta_model(name)):,}"
    assert header(name)["deployed_parameters"] == f"{count_parameters(meta_deployed(name)):,}"


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS])
@pytest.mark.parametrize("form", ["gflops", "deployed_gflops"])
def test_header_operations_are_true(name: str, form: str) -> None:
    printed = header(name)[form]
    counted = count_gflops(meta_model(name) if form == "gflops" else meta_deployed(name))
    assert f"{counted:.{len(printed.partition('.')[2])}f}" == printed


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_published_parameters(name: str, parameters: int) -> None:
    assert count_parameters(meta_model(name)) == parameters


@pytest.mark.parametrize("size", DEPLOYED)
@pytest.mark.parametrize("family", ["gelan", "yolov9"])
def test_deployed_size(family: str, size: str) -> None:
    deployed = meta_deployed(f"{family}-{size}")
    parameters, gflops = DEPLOYED[size]
    assert count_parameters(deployed) == parameters
    assert float(header(f"{family}-{size}")["deployed_gflops"]) == gflops


@pytest.mark.parametrize("name", NETWORKS)
def test_strides_and_branches(name: str) -> None:
    model = meta_model(name)
    assert model.stride == [8, 16, 32]
    assert model.head.branches == (3 if name == "yolov9-cf" else 2 if name.startswith("yolov9") else 1)
    assert (model.task, model.nc, len(model.names)) == ("detect", 80, 80)


def test_focal_network_of_the_article() -> None:
    config = yaml.safe_load(PATHS["yolov9-c-FocalModulationBlock"].read_text())
    rows = config["backbone"] + config["head"]
    assert len(rows) == 40
    assert rows[10] == [-1, 1, "FocalModulationBlock", [512]]
    assert rows[39] == [[32, 35, 38, 17, 20, 23], 1, "DualDDetect", ["nc"]]


def test_cf_feeds_its_lead_branch_last() -> None:
    deployed, gelan_c = meta_deployed("yolov9-cf"), meta_deployed("gelan-c")
    assert {key: value.shape for key, value in deployed.state_dict().items()} == {key: value.shape for key, value in gelan_c.state_dict().items()}
