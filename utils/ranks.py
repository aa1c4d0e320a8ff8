"""The ranks of a run: the processes that torchrun started for it. A process alone is rank 0 of 1.

Every function works in a process alone too, where it returns what it was given. All ranks must call the functions
that exchange something, in the same order.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import SettingsError

Value = TypeVar("Value")

JOIN_TIMEOUT = timedelta(minutes=5)
"""Longest wait for the other ranks to start."""
STEP_TIMEOUT = timedelta(seconds=45)
"""Longest wait for the other ranks in a training step; after it the run ends, since one of them is lost."""
PATIENT_TIMEOUT = timedelta(minutes=30)
"""Longest wait while one rank does something alone: reads the data set, draws plots, writes a checkpoint."""
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets in the environment of every process."""


@dataclass(frozen=True)
class Launch:
    """How torchrun started this process.

    Attributes:
        rank: number of this process in the run, from 0.
        size: number of processes.
        local_rank: number of this process on its machine: the GPU that it uses.
        restarts: how often torchrun has started the processes again.
        identity: the same text in every process of one launch and its restarts.
    """

    rank: int
    size: int
    local_rank: int
    restarts: int = 0
    identity: str = ""


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """Return how torchrun started this process; None for a process alone.

    Raises:
        SettingsError: WORLD_SIZE is set, but not all that belongs to it, or a value is no number.
    """
    if "WORLD_SIZE" not in environment:
        return None
    if missing := [name for name in VARIABLES if name not in environment]:
        raise SettingsError(
            f"WORLD_SIZE={environment['WORLD_SIZE']}: {', '.join(missing)} not set: expected all of "
            f"{', '.join(VARIABLES)}, as torchrun sets them; start with torchrun, or unset WORLD_SIZE"
        )
    try:
        rank, size, local = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except ValueError as error:
        raise SettingsError(
            f"RANK, WORLD_SIZE, LOCAL_RANK: {error}: expected numbers, as torchrun sets them"
        ) from error
    run_id = environment.get("TORCHELASTIC_RUN_ID", "none")
    # without --rdzv-id, the folder that torchrun makes for the launch: a process number alone comes again
    folder = Path(environment.get("TORCHELASTIC_ERROR_FILE", "")).parent.parent.parent
    identity = f"agent {os.getppid()} {folder}" if run_id == "none" else run_id
    return Launch(rank, size, local, int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")), identity)


class LostRankError(RuntimeError):
    """Another rank ended, or does not answer any more."""


LOST_TEXTS = (
    "connection closed",
    "connection reset",
    "broken pipe",
    "timed out",
    "timeout",
    "gloo",
    "nccl",
    "tcpstore",
)
"""What torch's errors say when another rank is lost: they have no class of their own."""


@contextlib.contextmanager
def exchange() -> Iterator[None]:
    """Turn torch's errors about a lost rank in the body into `LostRankError`."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if size() == 1 or not any(part in text for part in LOST_TEXTS):
            raise
        raise LostRankError(
            f"another rank ended or does not answer; its own message says why ({text.strip().splitlines()[0][:160]})"
        ) from error


class _Ranks:
    """The ranks that this process has joined."""

    launch = Launch(0, 1, 0)
    patient: dist.ProcessGroup | None = None


def launch() -> Launch:
    """Return this process's place among the ranks."""
    return _Ranks.launch


def size() -> int:
    """Return the number of ranks."""
    return _Ranks.launch.size


def is_first() -> bool:
    """Tell whether this process is the one that prints and writes."""
    return _Ranks.launch.rank == 0


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Launch]:
    """Join the other processes that torchrun started; a process alone joins nothing.

    Args:
        device: device of this rank. GPUs exchange tensors by NCCL, CPUs by gloo.
    Raises:
        SettingsError: the environment is not whole, or the other ranks do not answer.
    """
    found = read_launch()
    if found is None:
        yield _Ranks.launch
        return
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, rank, ranks = next(dist.rendezvous("env://", timeout=JOIN_TIMEOUT))
        # after a restart, the addresses of the lost processes are still in torchrun's store
        store = dist.PrefixStore(f"restart{found.restarts}", store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=STEP_TIMEOUT, store=store, rank=rank, world_size=ranks)
        patient = dist.new_group(backend="gloo", timeout=PATIENT_TIMEOUT)
        assert isinstance(patient, dist.ProcessGroup), "every rank is a member"
        _Ranks.patient = patient
    except (RuntimeError, ValueError) as error:  # torch's own texts take many lines
        raise SettingsError(
            f"rank {found.rank} of {found.size}: the other ranks do not answer at {address}: "
            f"{str(error).strip().splitlines()[0][:200]}: expected all of them to be started by one torchrun "
            "command, and a port that is free"
        ) from error
    _Ranks.launch = found
    try:
        yield found
    finally:
        _Ranks.launch, _Ranks.patient = Launch(0, 1, 0), None
        dist.destroy_process_group()


def summed(value: Tensor) -> Tensor:
    """Return the sum of a tensor over the ranks; without gradient."""
    if size() == 1:
        return value
    total = value.detach().clone()
    with exchange():
        dist.all_reduce(total)
    return total


def gathered(value: Value) -> list[Value]:
    """Return the values of all ranks, in the order of the ranks. Waits for ranks that do something alone."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    with exchange():
        dist.all_gather_object(values, value, group=_Ranks.patient)
    return values


def from_first(value: Value) -> Value:
    """Return the first rank's value. Waits for it."""
    if size() == 1:
        return value
    values: list[Any] = [value if is_first() else None]
    with exchange():
        dist.broadcast_object_list(values, group=_Ranks.patient)
    return values[0]


def check_same(what: str, value: object, advice: str) -> None:
    """Refuse a run whose ranks do not agree about something.

    Raises:
        SettingsError: in every rank; names the first rank that differs and both values, of mappings what differs.
    """
    first, *others = gathered(value)
    for rank, other in enumerate(others, 1):
        if other == first:
            continue
        ours, theirs = first, other
        if isinstance(first, dict) and isinstance(other, dict):
            names = [name for name in first | other if first.get(name) != other.get(name)]
            ours, theirs = ({name: values.get(name) for name in names} for values in (first, other))
        raise SettingsError(f"{what}: rank 0 has {ours}, rank {rank} has {theirs}: expected the same; {advice}")


def share_from_first(tensors: list[Tensor]) -> None:
    """Overwrite tensors by those of the first rank."""
    if size() > 1:
        with exchange():
            for tensor in tensors:
                dist.broadcast(tensor, 0)


@contextlib.contextmanager
def first_goes_first() -> Iterator[None]:
    """Run the body in the first rank, then in the others: it may write what they read."""
    if not is_first():
        from_first(None)
    yield
    if is_first():
        from_first(None)
