"""Finds the checkpoint that a run goes on from, and says what about it will be different."""

import re
from pathlib import Path
from typing import Any

from utils.errors import CheckpointError
from utils.training.options import TrainOptions
from utils.training.state import Progress, check_complete
from utils.weights.own_file import read_checkpoint

LEFTOVER = re.compile(r"\.[\w-]+\.(pt|yaml|csv|json|txt|png)\.[a-z0-9_]{8}\.tmp")
"""Names that `utils.files.atomic_write` gives to a run's temporary files; a killed process leaves them behind."""


def find_resumable(options: TrainOptions) -> dict[str, Any]:
    """Read the checkpoint to go on from, and take over its run's options, except those that were given again.

    Raises:
        CheckpointError: there is none, it is not whole, or its run is finished.
    """
    path = _resumed_path(options)
    checkpoint = read_checkpoint(path)
    check_complete(checkpoint, str(path))
    options.resume_from(checkpoint["options"], str(path))
    options.check()  # old and new ones together
    done, best = checkpoint["epoch"], checkpoint["best_epoch"]
    if done >= options.epochs:
        raise CheckpointError(f"{path}: has finished its {done} epochs: nothing to resume; --epochs N goes on to N")
    progress = Progress(epoch=done, best_epoch=best, validation=checkpoint.get("metrics", {}))
    if not checkpoint.get("partial") and progress.has_waited(options.patience):
        raise CheckpointError(
            f"{path}: stopped early after {done} epochs, nothing better than epoch {best + 1} in {options.patience}: nothing to resume; "
            "a larger --patience, or --patience 0, goes on"
        )
    planned = checkpoint["options"]["epochs"]
    if options.epochs != planned:
        print(
            f"{path}: goes on to {options.epochs} epochs in place of {planned}: the learning-rate schedule is recomputed for {options.epochs}, "
            f"so this is another run than one planned for {options.epochs} from the start"
        )
    return checkpoint


def _resumed_path(options: TrainOptions) -> Path:
    """Return the checkpoint that --resume names, or the newest one."""
    if not options.resume:
        folder = Path(options.project if "project" in options.given else "runs")
        path = max(folder.glob("**/weights/last.pt"), key=lambda path: path.stat().st_mtime, default=None)
        if path is None:
            raise CheckpointError(f"--resume: no {folder}/**/weights/last.pt here: name the checkpoint, --resume PATH")
        return path
    path = Path(options.resume)
    path = path / "weights" / "last.pt" if path.is_dir() else path
    folder = path.parent.parent
    if not path.exists() and path.name == "last.pt" and folder.is_dir():
        held = sorted(
            str(file.relative_to(folder))
            for file in folder.glob("**/*")
            if file.is_file() and not LEFTOVER.fullmatch(file.name)
        )
        raise CheckpointError(
            f"{path}: no such file: {folder} holds {', '.join(held[:8]) or 'nothing'}{', …' if len(held) > 8 else ''}: expected a run's folder; "
            "a run that ended before its first checkpoint is started again, its options are in args.yaml"
        )
    return path


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed run has left in its folder, and say so."""
    left = [
        path for place in (folder, folder / "weights") for path in place.glob(".*.tmp") if LEFTOVER.fullmatch(path.name)
    ]
    for path in left:
        path.unlink(missing_ok=True)
    if left:
        print(
            f"{folder}: removed {len(left)} unfinished files of a run that was killed: {', '.join(path.name for path in left[:5])}"
        )
