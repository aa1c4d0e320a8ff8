"""Assigners by name: which anchor points answer for which object (utils/losses/task_aligned.py, utils/losses/atss.py)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from utils.losses.atss import assign_by_anchors
from utils.losses.parts import Range, part
from utils.losses.task_aligned import Assignment, Overlap, assign

if TYPE_CHECKING:  # which itself reads the names registered here
    from utils.hyperparameters import Hyperparameters


@dataclass
class Scene:
    """What an assigner looks at: predictions, anchor points and objects of a batch; shapes as `utils.losses.task_aligned.assign` has them.

    Attributes:
        strides: (A, 1) pixels; `level_sizes` anchor points of each level.
    """

    class_logits: Tensor
    boxes_xyxy: Tensor
    points: Tensor
    strides: Tensor
    level_sizes: list[int]
    target_image: Tensor
    target_class: Tensor
    target_xyxy: Tensor


@part("assigner", short=("tal",), hint=": tal_topk, tal_alpha and tal_beta are hyperparameters beside it")
def task_aligned(scene: Scene, overlap_of: Overlap | None, hyp: "Hyperparameters") -> Assignment:
    """The best of score^tal_alpha * overlap^tal_beta among the anchor points inside an object.

    Source: Feng et al. 2021, TOOD, arxiv.org/abs/2108.07755, section 3.3
    Differs: see utils/losses/task_aligned.py.
    """
    return assign(
        scene.class_logits,
        scene.boxes_xyxy,
        scene.points,
        scene.target_image,
        scene.target_class,
        scene.target_xyxy,
        hyp.tal_topk,
        hyp.tal_alpha,
        hyp.tal_beta,
        overlap_of,
    )


@part("assigner", topk=Range(1, 1000), anchor_scale=Range(0, 100, above=True))
def atss(
    scene: Scene, overlap_of: Overlap | None, hyp: "Hyperparameters", topk: int = 9, anchor_scale: float = 5.0
) -> Assignment:
    """The anchor points near an object's centre whose squares of `anchor_scale` strides overlap it better than most.

    Source: Zhang et al. 2020, arxiv.org/abs/1912.02424, algorithm 1
    Differs: see utils/losses/atss.py: the score is the predicted box's overlap.
    """
    return assign_by_anchors(
        scene.boxes_xyxy,
        scene.points,
        scene.strides,
        scene.level_sizes,
        scene.target_image,
        scene.target_xyxy,
        topk,
        anchor_scale,
        overlap_of,
    )
