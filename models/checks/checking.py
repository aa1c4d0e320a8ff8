"""A check and its result: a promise in words, the function that tests it, and the remedy if it is broken."""

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
    """The promise is broken; the text says what was seen."""


class CheckSkippedError(Exception):
    """The check cannot be made here; the text says why."""


class NotApplicableError(Exception):
    """The promise does not concern this layer; the text says why."""


@dataclass(frozen=True)
class Check(Generic[Subject]):
    """One promise.

    Attributes:
        name: what the table calls it.
        promise: one sentence.
        remedy: what to do if it is broken, one sentence.
        look: tests it; returns what was seen, in a few words, or raises one of the errors above.
        needs: names of checks that must pass first; if one of them failed, this one is skipped.
        slow: whether it takes seconds.
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
    """Checks of one kind of subject, in the order in which they are made."""

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
        ):  # a layer that needs a package which is not here
            return Result(check.name, check.promise, SKIPPED, str(error))
        return Result(check.name, check.promise, FAIL, f"{type(error).__name__}: {first_line(error)}", check.remedy)


def make_all(
    checks: Iterable[Check[Subject]],
    subject: Subject,
    quick: bool = False,
    narrow: Mapping[str, Callable[[Subject], Subject]] | None = None,
) -> Iterator[Result]:
    """Run checks in order; a check is skipped if one that it needs failed, so one mistake is one failure.

    Args:
        quick: leave out the slow ones, as skipped.
        narrow: by name of a check: how its failure narrows the subject for the checks after it.
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
    """Return the first line of an error's text, shortened to what a table takes."""
    text = wording.first_line(error)
    return text if len(text) <= 240 else text[:237] + "..."


def run(module: Callable[..., Any], given: Any) -> list[Tensor]:
    """Run a layer with fixed random numbers, and return its output tensors."""
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
    """Fail the check for an empty tensor, or one with inf or nan."""
    for tensor in tensors:
        demand(tensor.numel() > 0, f"{what}: an output of shape {tuple(tensor.shape)} holds nothing")
        demand(
            bool(tensor.isfinite().all()),
            f"{what}: {int((~tensor.isfinite()).sum())} of {tensor.numel()} values are inf or nan",
        )
