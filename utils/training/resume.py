"""Resuming a run: find its checkpoint, check that it can go on, clean its folder."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from utils.errors import CheckpointError
from utils.files import write_json
from utils.ranks import launch
from utils.training.options import TrainOptions
from utils.training.state import Progress, check_complete
from utils.weights.own_file import read_checkpoint
from utils.wording import listed

LAUNCH = "launch.json"
LEFTOVER = re.compile(r"\.[\w-]+\.(pt|yaml|csv|jsonl?|txt|png)\.[a-z0-9_]{8}\.tmp")
"""Names of the temporary files of `utils.files.atomic_write`, which a killed process leaves behind."""


def find_resumable(options: TrainOptions) -> tuple[TrainOptions, dict[str, Any]]:
    """Find the checkpoint that a run is resumed from, and return the options of the resumed run and the checkpoint.

    The options are those of the run, but for the ones on the command line that may change.

    Raises:
        CheckpointError: there is no checkpoint, it is not whole, or its run is finished.
    """
    path = _resumed_path(options)
    checkpoint = read_checkpoint(path)
    check_complete(checkpoint, str(path))
    options = options.resume_from(checkpoint["options"], str(path))
    options.check()
    check_unfinished(options, checkpoint)
    planned = checkpoint["options"]["epochs"]
    if options.epochs != planned:
        print(
            f"{path}: goes on to {options.epochs} epochs, not {planned}: the learning-rate schedule is recomputed; a "
            f"run planned for {options.epochs} epochs from the start gives another result"
        )
    return options, checkpoint


def check_unfinished(options: TrainOptions, checkpoint: dict[str, Any]) -> None:
    """Refuse to resume a run that has done all its epochs, or has stopped early.

    Raises:
        CheckpointError: says which of the two, and the flag that goes on.
    """
    path, done, best = options.resume, checkpoint["epoch"], checkpoint["best_epoch"]
    if done >= options.epochs:
        raise CheckpointError(f"{path}: has finished its {done} epochs: nothing to resume; --epochs N goes on to N")
    progress = Progress(epoch=done, best_epoch=best, validation=checkpoint.get("metrics", {}))
    if not checkpoint.get("partial") and progress.has_waited(options.patience):
        raise CheckpointError(
            f"{path}: stopped early after {done} epochs, because none was better than epoch {best + 1} in"
            f" {options.patience}: nothing to resume; a larger --patience, or --patience 0, goes on"
        )


def _resumed_path(options: TrainOptions) -> Path:
    """Return the checkpoint that --resume names, or the newest one."""
    if not options.resume:
        folder = Path(options.project if "project" in options.given else "runs")
        newest = max(folder.glob("**/weights/last.pt"), key=lambda path: path.stat().st_mtime, default=None)
        if newest is None:
            raise CheckpointError(f"--resume: no {folder}/**/weights/last.pt here: name the checkpoint, --resume PATH")
        return newest
    path = Path(options.resume)
    path = path / "weights" / "last.pt" if path.is_dir() else path
    folder = path.parent.parent
    if not path.exists() and path.name == "last.pt" and folder.is_dir():
        files = (file for file in folder.glob("**/*") if file.is_file() and not LEFTOVER.fullmatch(file.name))
        names = listed(sorted(str(file.relative_to(folder)) for file in files), 8) or "nothing"
        raise CheckpointError(
            f"{path}: no such file: {folder} holds {names}: expected a run's folder; if the run ended before its first"
            " checkpoint, start it again with the options of args.yaml"
        )
    return path


def note_launch(folder: Path) -> None:
    """Write launch.json into a run's folder: by it the same launch finds the run when torchrun restarts it."""
    if identity := launch().identity:
        write_json(folder / LAUNCH, {"launch": identity})


def resumed_by_torchrun(options: TrainOptions) -> TrainOptions:
    """Return the options with --resume, where torchrun has started the processes again and the run has a last.pt.

    Without a last.pt the run starts again in its folder.
    """
    here = launch()
    if not here.restarts or options.resume is not None:
        return options
    for note in sorted(Path(options.project).glob(f"*/{LAUNCH}"), key=lambda path: -path.stat().st_mtime):
        if json.loads(note.read_text()).get("launch") != here.identity:
            continue
        last = note.parent / "weights" / "last.pt"
        if last.is_file():
            print(f"restart {here.restarts} by torchrun: the run goes on from {last}")
            return replace(options, resume=str(last))
        print(f"restart {here.restarts} by torchrun: no epoch was saved: the run starts again in {note.parent}")
        return replace(options, name=note.parent.name, exist_ok=True)
    print(f"restart {here.restarts} by torchrun: no run of this launch in {options.project}: a new one starts")
    return options


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a run's folder, and print their names."""
    places = (folder, folder / "weights")
    left = [path for place in places for path in place.glob(".*.tmp") if LEFTOVER.fullmatch(path.name)]
    for path in left:
        path.unlink(missing_ok=True)
    if left:
        names = listed(path.name for path in left)
        print(f"{folder}: removed {len(left)} unfinished files of a run that was killed: {names}")
