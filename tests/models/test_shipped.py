"""The networks that come with the repository: each builds, and its header tells the truth."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import models
from models.parameters import count_parameters
from models.summary import count_gflops
from models.yolo import Model
from tests.few import few
from tests.foreign_files import foreign_tensors
from tests.networks import meta_deployed, meta_model, meta_pruned, seeded_images

MODELS = Path(models.__file__).parent
PATHS = {path.stem: path for folder in ("detect", "segment") for path in sorted((MODELS / folder).glob("*.yaml"))}
FAMILIES = re.compile(r"(yolo(?:v8|11))(.*)")


def content(name: str) -> dict[str, Any]:
    """Return the content of a shipped yaml."""
    return yaml.safe_load(PATHS[name].read_text(encoding="utf-8"))


def scaled_names(name: str) -> dict[str, str]:
    """Return the networks of a yaml, by what their lines of its header start with."""
    yaml_of_scales = content(name)
    if "base" in yaml_of_scales:
        yaml_of_scales = content(yaml_of_scales["base"].removesuffix(".yaml"))
    scales = yaml_of_scales.get("scales")
    family, rest = FAMILIES.fullmatch(name).groups() if scales else (name, "")
    return {f"{letter} ": f"{family}{letter}{rest}" for letter in scales} if scales else {"": name}


NETWORKS = {network: (name, start) for name in PATHS for start, network in scaled_names(name).items()}
"""Every shipped network, with its yaml and the start of its lines in the header."""

QUICK = ("gelan-t", "yolov9-t", "yolov8n", "yolo11n-seg", "yolov9-t-ACmix")
"""A network of each kind: single, dual, another family, with masks, with an article's module. Every run counts them."""

HEADER = (
    r"# {start}as trained: (?P<parameters>[\d,]+) parameters, (?P<gflops>[\d.]+) GFLOPs\n"
    r"# {start}as deployed: (?P<deployed_parameters>[\d,]+) parameters, "
    r"(?P<deployed_gflops>[\d.]+) GFLOPs \(80 classes, 640 x 640\)\n"
)

PARAMETERS = {
    "gelan-t": 2_442_640, "gelan-s": 7_226_208, "gelan-m": 20_124_000, "gelan-c": 25_498_752, "gelan-e": 58_114_432,
    "yolov9-t": 3_717_680, "yolov9-s": 9_804_512, "yolov9-m": 32_878_432, "yolov9-c": 51_182_080,
    "yolov9-e": 69_529_664,
    "yolov9-cf": 56_734_400, "yolov9-c-FocalModulationBlock": 54_439_427,
}  # fmt: skip
DEPLOYED = {  # parameters, GFLOPs at 640: the published ones of both families
    "t": (2_407_632, 9.82), "s": (7_105_888, 26.38), "m": (19_978_672, 76.31),
    "c": (25_288_768, 102.14), "e": (57_345_920, 188.95),
}  # fmt: skip


def header(network: str) -> re.Match[str]:
    name, start = NETWORKS[network]
    found = re.search(HEADER.format(start=start), PATHS[name].read_text(encoding="utf-8"))
    assert found, f"{name}: two lines with parameters and GFLOPs of {network}, as trained and as deployed"
    return found


@pytest.mark.parametrize("name", PATHS)
def test_header_says_how_to_train(name: str) -> None:
    text = PATHS[name].read_text(encoding="utf-8")
    assert f"# python train.py --cfg {next(iter(scaled_names(name).values()))}.yaml" in text


@pytest.mark.parametrize("network", few(NETWORKS, *QUICK))
def test_header_is_true(network: str) -> None:
    assert header(network)["parameters"] == f"{count_parameters(meta_model(network)):,}"
    assert header(network)["deployed_parameters"] == f"{count_parameters(meta_deployed(network)):,}"


@pytest.mark.parametrize("network", few(NETWORKS, *QUICK))
@pytest.mark.parametrize("form", ["gflops", "deployed_gflops"])
def test_header_operations_are_true(network: str, form: str) -> None:
    printed = header(network)[form]
    counted = sum(count_gflops(meta_model(network) if form == "gflops" else meta_deployed(network)))
    assert f"{counted:.{len(printed.partition('.')[2])}f}" == printed


@pytest.mark.parametrize(("name", "parameters"), few(PARAMETERS.items(), "gelan-t", "yolov9-t", "yolov9-cf"))
def test_published_parameters(name: str, parameters: int) -> None:
    assert count_parameters(meta_model(name)) == parameters


@pytest.mark.parametrize("size", few(DEPLOYED, "t"))
@pytest.mark.parametrize("family", ["gelan", "yolov9"])
def test_deployed_size(family: str, size: str) -> None:
    deployed = meta_deployed(f"{family}-{size}")
    parameters, gflops = DEPLOYED[size]
    assert count_parameters(deployed) == parameters
    assert float(header(f"{family}-{size}")["deployed_gflops"]) == gflops


@pytest.mark.parametrize("network", few(NETWORKS, *QUICK, "yolov9-cf"))
def test_strides_and_branches(network: str) -> None:
    model = meta_model(network)
    assert model.stride == [8, 16, 32]
    assert model.head.branches == (3 if network == "yolov9-cf" else 2 if network.startswith("yolov9") else 1)
    assert model.task == ("segment" if PATHS[NETWORKS[network][0]].parent.name == "segment" else "detect")
    assert (model.nc, len(model.names)) == (80, 80)


# parameters, state-dict entries, first digits of the digest over sorted lines `name shape`, under the originals' names
PUBLISHED = {
    "yolo11n": (2_624_080, 499, "b2bc009a9564"),
    "yolo11s": (9_458_752, 499, "a5c951d44631"),
    "yolo11m": (20_114_688, 649, "29d3b6af4578"),
    "yolo11l": (25_372_160, 1015, "c4ccaec8ea7e"),
    "yolo11x": (56_966_176, 1015, "512cdd24838f"),
    "yolo11n-seg": (2_876_848, 561, "12bd824e4b97"),
    "yolo11s-seg": (10_113_248, 561, "89f472a09870"),
    "yolo11m-seg": (22_420_896, 711, "4be4ab2cd8a7"),
    "yolo11l-seg": (27_678_368, 1077, "edb48a7d0bd9"),
    "yolo11x-seg": (62_142_656, 1077, "0b22eb2a9b62"),
    "yolov8n": (3_157_200, 355, "b601da4a5060"),
    "yolov8s": (11_166_560, 355, "2787534d7c5e"),
    "yolov8m": (25_902_640, 475, "ade12096a58f"),
    "yolov8l": (43_691_520, 595, "0c08dac80bc4"),
    "yolov8x": (68_229_648, 595, "9c2d459e86e4"),
    "yolov8n-seg": (3_409_968, 417, "c735211f1238"),
    "yolov8s-seg": (11_821_056, 417, "d862ffeb8457"),
    "yolov8m-seg": (27_285_968, 537, "64eccba34da9"),
    "yolov8l-seg": (45_997_728, 657, "9b57782d47da"),
    "yolov8x-seg": (71_827_888, 657, "7c36186c96a1"),
}


@pytest.mark.parametrize(
    ("network", "expected"), few(PUBLISHED.items(), "yolov8n", "yolov8n-seg", "yolo11n", "yolo11n-seg")
)
def test_published_names_and_shapes(network: str, expected: tuple[int, int, str]) -> None:
    model = meta_model(network)
    lines = sorted(f"{name} {'x'.join(map(str, value.shape))}" for name, value in foreign_tensors(model).items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    assert (count_parameters(model), len(lines), digest) == expected


def test_published_segmentation_networks_of_yolov9() -> None:
    assert count_parameters(meta_model("gelan-c-seg")) == 27_634_720
    assert count_parameters(meta_deployed("gelan-c-seg")) == 27_423_808
    assert count_parameters(meta_model("gelan-c-dseg")) == 27_668_256
    assert count_parameters(meta_model("yolov9-c-dseg")) == 57_991_744


def test_pruning_a_segmentation_network_drops_nothing_of_its_single_form() -> None:
    """The published gelan-c-dseg has one repeat, this one two: only its own single form takes all its weights."""
    trained, pruned, published = meta_model("yolov9-c-dseg"), meta_pruned("yolov9-c-dseg"), meta_model("gelan-c-dseg")
    assert [row.name for row in pruned.rows] == [row.name for row in published.rows]
    assert [row.sources for row in pruned.rows] == [row.sources for row in published.rows]
    assert [
        number
        for number, (ours, theirs) in enumerate(zip(pruned.rows, published.rows, strict=True))
        if ours.arguments != theirs.arguments
    ] == [22]
    assert (pruned.rows[22].arguments, published.rows[22].arguments) == ([256, 256, 128, 2], [256, 256, 128, 1])
    assert (
        count_parameters(pruned.model[22])
        == count_parameters(trained.model[41])
        > count_parameters(published.model[22])
    )
    assert count_parameters(pruned.head) == count_parameters(trained.head.lead) == count_parameters(published.head)


def test_focal_network_of_the_article() -> None:
    config = content("yolov9-c-FocalModulationBlock")
    assert "base" not in config, "it stands in full, as published"
    rows = config["backbone"] + config["head"]
    assert len(rows) == 40
    assert rows[10] == [-1, 1, "FocalModulationBlock", [512]]
    assert rows[39] == [["a3", "a4", "a5", "n3", "n4", "n5"], 1, "DualDDetect", ["nc"]]
    assert meta_model("yolov9-c-FocalModulationBlock").rows[39].sources == [32, 35, 38, 17, 20, 23]


# rows, digest of the layer table, digest of tensor names and shapes: as built by the full yamls before the edits
DERIVED = {
    "gelan-t-ACmix": (26, "107fca557698", "9c4d65dd3e58"),
    "gelan-t-FocalModulationBlock": (24, "f877854329ac", "7dc1cda44957"),
    "yolo11n-DynamicConv": (24, "aad490d95782", "91d6498a169d"),
    "yolo11n-FocalModulation": (24, "0b4758913119", "9117531e06f3"),
    "yolo11n-SPPF-FocalModulation": (25, "902d6d15e396", "26ed289e1dd9"),
    "yolov8n-ACmix": (26, "ae36817fd5e7", "c8386a9d3113"),
    "yolov8n-C2f-ACmix": (23, "f5dec2af8550", "887756b6935b"),
    "yolov8n-C2f-GatherExcite": (23, "800c28ff6117", "9077cbea70bf"),
    "yolov8n-GatherExcite-theta": (27, "a8ebd5ff81ae", "dd1e3b514402"),
    "yolov8n-GatherExcite": (27, "e7c0e4d00c6d", "4f24539acc1a"),
    "yolov9-c-ACmix": (42, "71af2bc9b0bc", "3c2cfcb9a870"),
    "yolov9-e-FocalModulationBlock": (51, "7787464a073b", "75b169c615e4"),
    "yolov9-m-FocalModulationBlock": (40, "2afd3ff48d61", "1cd048691006"),
    "yolov9-s-FocalModulationBlock": (31, "c440d27cf37f", "8c85f7a8d88b"),
    "yolov9-t-ACmix": (33, "2715e3779e21", "239738508943"),
    "yolov9-t-FocalModulationBlock": (31, "490fb5b37a42", "7cebf62a9a54"),
    "yolo11n-seg-DynamicConv": (24, "90d3c6d4c852", "240432543ca7"),
}


def short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def test_networks_with_modules_are_edits_of_their_base() -> None:
    derived = {
        network for network, (name, start) in NETWORKS.items() if "base" in content(name) and start in ("", "n ")
    }
    assert derived == set(DERIVED)


@pytest.mark.parametrize(
    ("network", "expected"),
    few(
        DERIVED.items(), "yolov9-t-ACmix", "yolov8n-C2f-ACmix", "yolov8n-GatherExcite-theta", "yolo11n-seg-DynamicConv"
    ),
)
def test_edits_build_what_the_full_yaml_built(network: str, expected: tuple[int, str, str]) -> None:
    model = meta_model(network)
    rows = [f"{row.sources} {row.repeats} {row.name} {row.arguments} {row.out_channels}" for row in model.rows]
    tensors = [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    assert (len(rows), short_digest("\n".join(rows)), short_digest(str(tensors))) == expected


def test_cf_feeds_its_lead_branch_last() -> None:
    deployed, gelan_c = meta_deployed("yolov9-cf"), meta_deployed("gelan-c")
    assert {key: value.shape for key, value in deployed.state_dict().items()} == {
        key: value.shape for key, value in gelan_c.state_dict().items()
    }


# parameters that the modules of the articles add, by the formulas of their papers
ADDED = {
    # 256 channels, kernels 3 and 5: 256 * 515 + 515 + 2 * (256 * 256 + 256) + 256 * 34
    "yolo11n-SPPF-FocalModulation": 272_643,
    "yolo11n-FocalModulation": 272_643 - 164_608,  # less SPPF, 256 * 128 + 512 * 256 + 2 * (128 + 256)
    "yolov8n-GatherExcite": 0,
    "yolov8x-C2f-GatherExcite": 0,
    # 3 halvings, 9 weights and 2 of normalisation each, 32 + 64 + 128 + 256 channels
    "yolov8n-GatherExcite-theta": 15_840,
    # per level of c channels: the others, 3 x 3 from finer and 1 x 1 from coarser ones; 16 channels of each and
    # 3 shares; 3 x 3 behind
    "yolov8n-ASFF": (128 + 256) * 64
    + 4 * 64
    + 3 * (64 * 16 + 32)
    + 147
    + 9 * 64**2
    + 2 * 64
    + (9 * 64 + 256) * 128
    + 4 * 128
    + 3 * (128 * 16 + 32)
    + 147
    + 9 * 128**2
    + 2 * 128
    + 9 * (64 + 128) * 256
    + 4 * 256
    + 3 * (256 * 16 + 32)
    + 147
    + 9 * 256**2
    + 2 * 256,
    "yolov9-c-ACmix": 218_414 + 2 * 829_934,  # 256, 512 and 512 channels
    "yolov9-m-FocalModulationBlock": 2_869_443,  # 480 channels, kernels 9 and 11
    "yolov9-c-FocalModulationBlock": 3_257_347,  # 512 channels
}


@pytest.mark.parametrize(
    ("network", "parameters"),
    few(ADDED.items(), "yolo11n-SPPF-FocalModulation", "yolov8n-GatherExcite-theta", "yolov8n-ASFF", "yolov9-c-ACmix"),
)
def test_parameters_that_a_module_adds(network: str, parameters: int) -> None:
    base = re.match(r"yolo(?:v8|11)[nsmlx]|yolov9-.", network)[0]
    assert count_parameters(meta_model(network)) - count_parameters(meta_model(base)) == parameters


def rows_without(network: str, module: str | None) -> list[tuple[str, list, list[int]]]:
    """Layer, arguments and sources of every row, as if the rows of `module` were taken out and the rest renumbered."""
    rows = meta_model(network).rows
    kept = [row.index for row in rows if row.name != module]

    def through(source: int) -> int:
        while source >= 0 and rows[source].name == module:
            (source,) = rows[source].sources
        return kept.index(source) if source >= 0 else source

    return [
        (row.name, row.arguments, [through(source) for source in row.sources]) for row in rows if row.name != module
    ]


INSERTED = {
    "yolo11n-SPPF-FocalModulation": ("yolo11n", "FocalModulation", [10]),
    "yolov8n-GatherExcite": ("yolov8n", "GatherExcite", [3, 6, 9, 12]),
    "yolov8n-GatherExcite-theta": ("yolov8n", "GatherExcite", [3, 6, 9, 12]),
    "yolov8n-ACmix": ("yolov8n", "ACmix", [16, 20, 24]),
    "gelan-t-ACmix": ("gelan-t", "ACmix", [16, 20, 24]),
    "gelan-t-FocalModulationBlock": ("gelan-t", "FocalModulationBlock", [9]),
    "yolov9-t-ACmix": ("yolov9-t", "ACmix", [16, 20, 24]),
    "yolov9-c-ACmix": ("yolov9-c", "ACmix", [17, 21, 25]),
    **{f"yolov9-{size}-FocalModulationBlock": (f"yolov9-{size}", "FocalModulationBlock", [9]) for size in "ts"},
    **{f"yolov9-{size}-FocalModulationBlock": (f"yolov9-{size}", "FocalModulationBlock", [10]) for size in "mc"},
    "yolov9-e-FocalModulationBlock": ("yolov9-e", "FocalModulationBlock", [29]),
}
"""Networks with rows more than their base: the base, the module, and where it stands."""


@pytest.mark.parametrize(
    ("network", "expected"),
    few(INSERTED.items(), "yolo11n-SPPF-FocalModulation", "yolov8n-GatherExcite-theta", "yolov9-t-ACmix"),
)
def test_inserted_rows_leave_the_others_as_they_were(network: str, expected: tuple[str, str, list[int]]) -> None:
    base, module, places = expected
    assert [row.index for row in meta_model(network).rows if row.name == module] == places
    assert rows_without(network, module) == rows_without(base, None)


@pytest.mark.parametrize(
    "network",
    few((name for name in INSERTED if name.startswith("yolov9")), "yolov9-t-ACmix", "yolov9-t-FocalModulationBlock"),
)
def test_auxiliary_branch_takes_its_maps_from_before_the_module(network: str) -> None:
    model = meta_model(network)
    modules = {row.index for row in model.rows if row.name == INSERTED[network][1]}
    lead = {row.index: row.sources for row in model.rows}
    used, open_rows = set(), list(model.rows[-1].sources[:3])
    while open_rows:
        index = open_rows.pop()
        if index >= 0 and index not in used:
            used.add(index)
            open_rows += lead[index]
    assert not used & modules


@pytest.mark.parametrize(
    "network", few((name for name in INSERTED if name.endswith("ACmix")), "yolov8n-ACmix", "yolov9-t-ACmix")
)
def test_every_level_of_the_lead_head_takes_a_mixed_map(network: str) -> None:
    model = meta_model(network)
    assert model.rows[-1].sources[-3:] == INSERTED[network][2]


@pytest.mark.parametrize(
    ("network", "base", "changed"),
    [
        ("yolo11n-FocalModulation", "yolo11n", {9: ("FocalModulation", [{"residual": True}])}),
        (
            "yolov8n-C2f-GatherExcite",
            "yolov8n",
            {
                index: ("C2f", [width, True, {"attention": "GatherExcite"}])
                for index, width in ((2, 128), (4, 256), (6, 512), (8, 1024))
            },
        ),
        (
            "yolov8n-C2f-ACmix",
            "yolov8n",
            {index: ("C2f", [width, True, {"attention": "ACmix"}]) for index, width in ((6, 512), (8, 1024))},
        ),
    ],
)
def test_replaced_rows(network: str, base: str, changed: dict[int, tuple[str, list]]) -> None:
    rows, plain = rows_without(network, None), rows_without(base, None)
    assert [row[2] for row in rows] == [row[2] for row in plain]
    assert {
        index: row[:2] for index, (row, other) in enumerate(zip(rows, plain, strict=True)) if row != other
    } == changed


@pytest.mark.parametrize(
    "network",
    few(
        (
            *("yolo11n-FocalModulation", "yolo11n-SPPF-FocalModulation", "yolo11n-DynamicConv"),
            *("yolov8n-GatherExcite", "yolov8n-GatherExcite-theta", "yolov8n-C2f-GatherExcite", "yolov8n-ACmix"),
            *("yolov8n-C2f-ACmix", "gelan-t-ACmix", "yolov9-t-ACmix", "yolov9-t-FocalModulationBlock"),
        ),
        *("yolo11n-DynamicConv", "yolov8n-GatherExcite-theta", "yolov9-t-ACmix", "yolov9-t-FocalModulationBlock"),
    ),
)
def test_small_forms_of_the_articles_train_on_tiny_images(network: str) -> None:
    torch.manual_seed(0)
    model = Model(network)
    outputs = model.train()(seeded_images(2, 3, 64, 64))
    generator = torch.Generator().manual_seed(1)
    maps = [level for branch in (outputs["main"], *outputs["aux"]) for level in branch]
    sum((level * torch.randn(level.shape, generator=generator)).sum() for level in maps).backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.abs().sum() > 0, key
    frozen = [key for key, parameter in model.named_parameters() if not parameter.requires_grad]
    assert all(key.endswith(("dfl.conv.weight", "conv_p.bias")) for key in frozen), frozen
    with torch.inference_mode():
        predictions = model.eval()(seeded_images(1, 3, 64, 64))
    assert predictions.shape == (1, 84, 84)
    assert predictions.isfinite().all()
