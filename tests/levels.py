"""Edits of a network's head levels as users write them: a finer or a coarser level, fewer levels, one level."""

from models.yolo import Model
from tests.few import few

P2 = (
    "label {stage} as p2",
    "insert nn.Upsample [None, 2, nearest] after n3 for {down} as u2",
    "insert Concat after u2 from u2, p2 as c2",
    "insert {block} after c2 as n2",
    "insert {shrink} after n2 as d2",
    "insert Concat after d2 from d2, n3 as c3",
    "insert {again} after c3 as m3",
    "set head from = [n2, m3, n4, n5]",
)
"""A level at stride 4, with a step down again: it stands between the top-down path and what was there."""
SIMPLE_P2 = "insert nn.Upsample [None, 2, nearest] after {0}3 for head as {0}u", "insert {1} after {0}u as {0}2"
"""A level at stride 4 on top of level 3, without a step down."""


def p2(block: str, again: str, shrink: str, stage: int = 2, down: int = 16) -> list[str]:
    return [part.format(block=block, again=again, shrink=shrink, stage=stage, down=down) for part in P2]


def simple_p2(block: str, sources: str, *branches: str) -> list[str]:
    """Edits for a level at stride 4 in each branch, which is named by the letter of its labels."""
    return [part.format(branch, block) for branch in branches for part in SIMPLE_P2] + [f"set head from = [{sources}]"]


def levels(sources: str) -> list[str]:
    return [f"set head from = [{sources}]"]


def p6(shrink: str, sources: str) -> list[str]:
    return [f"insert {shrink} after n5 for head as n6", *levels(sources)]


ADDED = {"u2", "c2", "n2", "d2", "c3", "m3", "n6", "au", "a2", "nu", "x1"}
"""Labels of the rows that these edits insert."""
ELAN = "RepNCSPELAN4 [32, 32, 16, 3]", "RepNCSPELAN4 [64, 64, 32, 3]", "AConv [32]"
C2F = "3 C2f [128]", "3 C2f [256]", "Conv [128, 3, 2]"
C3K2 = "2 C3k2 [128]", "2 C3k2 [256]", "Conv [128, 3, 2]"
EDITS: dict[str, tuple[str, list[str], tuple[int, ...]]] = {
    "GELAN with P2": ("gelan-t", p2(*ELAN), (4, 8, 16, 32)),
    "GELAN with P2 and attention": ("gelan-t", [*p2(*ELAN), "insert SE after p4 as x1"], (4, 8, 16, 32)),
    "GELAN without P3": ("gelan-t", levels("n4, n5"), (16, 32)),
    "GELAN without P5": ("gelan-t", levels("n3, n4"), (8, 16)),
    "GELAN with P6": ("gelan-t", p6("AConv [128]", "n3, n4, n5, n6"), (8, 16, 32, 64)),
    "GELAN with P6, without P3": ("gelan-t", p6("AConv [128]", "n4, n5, n6"), (16, 32, 64)),
    "GELAN with P3 alone": ("gelan-t", levels("n3"), (8,)),
    "GELAN with P4 alone": ("gelan-t", levels("n4"), (16,)),
    "GELAN with P5 alone": ("gelan-t", levels("n5"), (32,)),
    "YOLOv8 with P2": ("yolov8n", p2(*C2F), (4, 8, 16, 32)),
    "YOLOv8 without P3": ("yolov8n", levels("n4, n5"), (16, 32)),
    "YOLO11 with P2": ("yolo11n", p2(*C3K2, down=17), (4, 8, 16, 32)),
    "YOLOv9 with P2": ("yolov9-t", simple_p2(ELAN[0], "a2, a3, a4, a5, n2, n3, n4, n5", "a", "n"), (4, 8, 16, 32)),
    "YOLOv9 without P3": ("yolov9-t", levels("a4, a5, n4, n5"), (16, 32)),
    "YOLOv9 with P4 alone": ("yolov9-t", levels("a4, n4"), (16,)),
    "YOLOv8 segmentation with P6": ("yolov8n-seg", p6("Conv [1024, 3, 2]", "n3, n4, n5, n6"), (8, 16, 32, 64)),
    "YOLO11 segmentation without P5": ("yolo11n-seg", levels("n3, n4"), (8, 16)),
}
"""Network, edits, and the strides that its head has with them."""

CASES = few(
    EDITS,
    *("GELAN with P2 and attention", "GELAN with P6, without P3", "YOLOv9 without P3", "YOLOv8 segmentation with P6"),
)
"""All edits for a test; those of a kind that another one covers are slow."""


def edited(name: str, **settings: int) -> Model:
    """Return a network of `EDITS`."""
    network, patches, strides = EDITS[name]
    model = Model(f"{network}.yaml", patches=patches, **settings)
    assert tuple(model.stride) == strides
    return model
