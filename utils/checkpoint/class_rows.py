"""The outputs of class towers go from weights into a network by class name."""

from dataclasses import dataclass

from torch import Tensor

from data.labels.class_names import are_numbers, twice
from models.yolo import Model
from utils.weights.reading import Weights
from utils.wording import listed


@dataclass
class ClassRows:
    """Which output of a class tower is copied where.

    Attributes:
        tensors: names of the network's tensors with one row for each class.
        here: classes of the network that the file has too.
        there: the same classes in the file.
        note: a line on what is not plain, or "".
        used: whether a tensor of a class tower was copied.
    """

    tensors: frozenset[str]
    here: list[int]
    there: list[int]
    note: str = ""
    used: bool = False

    def copy(self, name: str, target: Tensor, tensor: Tensor) -> float:
        """Copy a tensor of the same shape; return the share of it that was copied."""
        if name not in self.tensors:
            target.copy_(tensor)
            return 1.0
        self.used = True
        target[self.here] = tensor[self.there].to(target)
        return len(self.here) / len(target)


def class_rows(model: Model, weights: Weights) -> ClassRows:
    """Match the classes of weights and of a network by name; by position where one side has no names.

    The names of the network are those of the data.
    """
    theirs, ours, everything = weights.names or [], model.names, list(range(model.nc))
    if theirs == ours or are_numbers(ours):
        return ClassRows(_outputs(model), everything, everything)
    if not theirs or are_numbers(theirs):
        note = "the file has no class names: its classes are taken by position"
        return ClassRows(_outputs(model), everything, everything, note)
    unclear = {*twice(theirs), *twice(ours)}
    here = [index for index, name in enumerate(ours) if name in theirs and name not in unclear]
    there = [theirs.index(ours[index]) for index in here]
    new = [ours[index] for index in everything if index not in here]
    note = f"class outputs by name: {len(here)} of {len(ours)} classes are in the file"
    note += f", {listed(new)} start anew" if new else ", in another order"
    return ClassRows(_outputs(model), here, there, note)


def _outputs(model: Model) -> frozenset[str]:
    """Return the names of the tensors of the last convolution of every class tower."""
    last = {
        id(parameter)
        for branch in (*model.head.aux, model.head.lead)
        for tower in branch.cls
        for parameter in list(tower.children())[-1].parameters()
    }
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in last)
