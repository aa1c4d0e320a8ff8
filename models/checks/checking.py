"""A check and its result. A check is a promise in words, a function that tests it, and a remedy."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from models.checks.layer_case import ERRORS, tensors_of
from utils import wording
from utils.errors import UserError

Subject = TypeVar("Subject")

Outcome = Literal["pass", "FAIL", "skipped", "not applicable"]
PASS: Outcome = "pass"
FAIL: Outcome = "FAIL"
SKIPPED: Outcome = "skipped"
NOT_APPLICABLE: Outcome = "not applicable"


class CheckFailedError(Exception):
    """The promise is broken; the text says how."""


class CheckSkippedError(Exception):
    """The check cannot be run here; the text says why."""


class NotApplicableError(Exception):
    """The promise does not apply to this layer; the text says why."""


@dataclass(frozen=True)
class Check(Generic[Subject]):
    """One promise with its test.

    Attributes:
        name: shown in the table.
        promise: one sentence.
        remedy: what to do if it is broken, one sentence.
        look: tests the promise; returns the finding in a few words, or raises one of the errors above.
        needs: names of checks that must pass first; if one fails, this check is skipped.
        slow: whether the check takes seconds.
    """

    name: str
    promise: str
    remedy: str
    look: Callable[[Subject], str]
    needs: tuple[str, ...] = ()
    slow: bool = False


@dataclass(frozen=True)
class Result:
    """Outcome of one check; `seen`: figure, failure or reason for skipping."""

    check: str
    promise: str
    outcome: Outcome
    seen: str
    remedy: str | None = None


@dataclass
class Suite(Generic[Subject]):
    """Checks of one kind of subject, in the order in which they run."""

    checks: dict[str, Check[Subject]] = field(default_factory=dict)

    def add(self, name: str, remedy: str, *, needs: tuple[str, ...] = (), slow: bool = False) -> Callable[[Any], Any]:
        """Register a function as the check `name`; its docstring is the promise."""

        def register(look: Callable[[Subject], str]) -> Callable[[Subject], str]:
            assert name not in self.checks, f"check {name!r} is there already"
            self.checks[name] = Check(name, (look.__doc__ or name).partition("\n")[0], remedy, look, needs, slow)
            return look

        return register


def make(check: Check[Subject], subject: Subject) -> Result:
    """Run one check."""
    try:
        return Result(check.name, check.promise, PASS, check.look(subject))
    except NotApplicableError as reason:
        return Result(check.name, check.promise, NOT_APPLICABLE, str(reason))
    except CheckSkippedError as reason:
        return Result(check.name, check.promise, SKIPPED, str(reason))
    except CheckFailedError as problem:
        return Result(check.name, check.promise, FAIL, str(problem), check.remedy)
    except ERRORS as error:
        if isinstance(error, UserError) and isinstance(
            error.__cause__, ImportError
        ):  # a layer whose package is not installed
            return Result(check.name, check.promise, SKIPPED, str(error))
        return Result(check.name, check.promise, FAIL, f"{type(error).__name__}: {first_line(error)}", check.remedy)


def make_all(
    checks: Iterable[Check[Subject]],
    subject: Subject,
    quick: bool = False,
    narrow: Mapping[str, Callable[[Subject], Subject]] | None = None,
) -> Iterator[Result]:
    """Run checks in order; skip a check if one that it needs failed, so that one mistake gives one failure.

    Args:
        quick: skip the slow checks.
        narrow: by name of a check: function that narrows the subject for later checks if this one fails.
    """
    unkept: dict[str, str] = {}
    for check in checks:
        missing = [name for name in check.needs if name in unkept]
        if missing:
            result = Result(
                check.name, check.promise, SKIPPED, f"tells nothing while '{missing[0]}' {unkept[missing[0]]}"
            )
        elif quick and check.slow:
            result = Result(check.name, check.promise, SKIPPED, "--quick leaves it out")
        else:
            result = make(check, subject)
        if result.outcome == FAIL:
            unkept[check.name] = "fails"
            subject = (narrow or {}).get(check.name, lambda same: same)(subject)
        elif result.outcome == SKIPPED:
            unkept[check.name] = "is skipped"
        yield result


def demand(kept: bool, problem: str) -> None:
    """Fail the running check unless a condition holds.

    Raises:
        CheckFailedError: it does not hold.
    """
    if not kept:
        raise CheckFailedError(problem)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, shortened to fit into a table."""
    text = wording.first_line(error)
    return text if len(text) <= 240 else text[:237] + "..."


def run(module: Callable[..., Any], given: Any) -> list[Tensor]:
    """Run a layer with seeded random numbers and return its output tensors."""
    torch.manual_seed(0)
    return tensors_of(module(given))


def shapes_of(tensors: list[Tensor]) -> list[tuple[int, ...]]:
    """List the shapes of tensors."""
    return [tuple(tensor.shape) for tensor in tensors]


def demand_close(found: list[Tensor], expected: list[Tensor], rtol: float, atol: float, what: str) -> None:
    """Fail the check unless |found - expected| <= atol + rtol * |expected| for all tensors."""
    demand(
        shapes_of(found) == shapes_of(expected), f"{what}: shapes {shapes_of(found)}, expected {shapes_of(expected)}"
    )
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = ours.detach().to(torch.float64), theirs.detach().to(torch.float64)
        demand(
            torch.allclose(ours, theirs, rtol=rtol, atol=atol),
            f"{what}: differs by up to {(ours - theirs).abs().max():.1e}",
        )


def demand_equal(found: list[Tensor], expected: list[Tensor], what: str) -> None:
    """Fail the check unless tensors are equal bit for bit."""
    demand(
        shapes_of(found) == shapes_of(expected), f"{what}: shapes {shapes_of(found)}, expected {shapes_of(expected)}"
    )
    for ours, theirs in zip(found, expected, strict=True):
        demand(
            torch.equal(ours, theirs), f"{what}: differs by up to {(ours.double() - theirs.double()).abs().max():.1e}"
        )


def demand_finite(tensors: list[Tensor], what: str) -> None:
    """Fail the check if a tensor is empty or contains inf or nan."""
    for tensor in tensors:
        demand(tensor.numel() > 0, f"{what}: an output of shape {tuple(tensor.shape)} holds nothing")
        demand(
            bool(tensor.isfinite().all()),
            f"{what}: {int((~tensor.isfinite()).sum())} of {tensor.numel()} values are inf or nan",
        )
