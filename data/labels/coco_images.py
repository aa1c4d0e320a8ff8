"""Where the images of a COCO file are."""

from collections.abc import Sequence
from pathlib import Path

from utils.errors import DataError
from utils.wording import shown

NUM_PROBED = 20
"""Images that are looked for when their folder is searched."""


def find_image_dir(path: Path, file_names: Sequence[str], root: Path | None = None) -> Path:
    """Return the folder near a COCO file that holds the most of its first images.

    Raises:
        DataError: none of the usual folders holds one of the first images.
    """
    folders = _usual_folders(path, root)
    if (best := _fullest(folders, file_names)) is not None:
        return best
    tried = ", ".join(str(folder) for folder in folders)
    bare = [_forms(name)[-1].rpartition("/")[2] for name in file_names]
    remedy = "set 'images' in the data yaml to the folder that file_name starts from"
    if (beside := _fullest(folders, bare)) is not None:
        remedy = f"{beside} holds files of these names without the folders before them: cut file_name down to the name"
    raise DataError(f"{path}: its images ({_example(file_names)}) were not found in {tried}: {remedy}")


def _usual_folders(path: Path, root: Path | None) -> list[Path]:
    """Return the folders where the images of a COCO file may be: near its path, then near what a link leads to."""
    near = [*_near(path), root or path.parent, *_near(path.resolve())]
    return list(dict.fromkeys(near))


def _near(path: Path) -> list[Path]:
    split = path.stem.partition("_")[2] or path.stem
    above = path.parent.parent
    return [
        above / split,
        above / "images" / split,
        path.parent / split,
        path.parent / path.stem,
        above / "images",
        path.parent,
        path.parent / "images",
        above,
    ]


def _fullest(folders: Sequence[Path], file_names: Sequence[str]) -> Path | None:
    """Return the first folder with the most of the first images, None if no folder has one."""
    probed = file_names[:NUM_PROBED]
    counts = [sum(_place(folder, name).is_file() for name in probed) for folder in folders]
    return folders[counts.index(max(counts))] if any(counts) else None


def folder_of_images(path: Path, file_names: Sequence[str], image_dir: Path | None, root: Path | None) -> Path:
    """Return the images' folder: the given one, else the one that is found.

    Raises:
        DataError: the images are nowhere, or in another folder than the given one.
    """
    if image_dir is None:
        return find_image_dir(path, file_names, root)
    if _fullest([image_dir], file_names) is None:
        elsewhere = _fullest(_usual_folders(path, root), file_names)
        if elsewhere is not None:
            raise DataError(
                f"{path}: none of its images ({_example(file_names)}) is in {image_dir}, which 'images' of the data "
                f"yaml names: they are below {elsewhere}: set 'images' to that folder, or leave it out"
            )
    return image_dir


def _example(file_names: Sequence[str]) -> str:
    return f"{shown(file_names[0])}, …" if len(file_names) > 1 else shown(file_names[0])


def _forms(name: str) -> list[str]:
    """Return the file names that an entry may mean: as it stands, and with Windows' backslashes as slashes."""
    return [name, name.replace("\\", "/")] if "\\" in name else [name]


def _place(folder: Path, name: str) -> Path:
    """Return the path of an image; of a name with backslashes the form that exists, else that with slashes."""
    places = [folder / form for form in _forms(name)]
    return next((place for place in places[:-1] if place.is_file()), places[-1])


def image_places(path: Path, folder: Path, file_names: Sequence[str], notes: list[str]) -> list[Path]:
    """Return the path of each image, and add a note on names with backslashes."""
    places = [_place(folder, name) for name in file_names]
    changed = [name for name, place in zip(file_names, places, strict=True) if place != folder / name]
    if changed:
        notes.append(
            f"{path}: {len(changed)} of {len(file_names)} file names have backslashes, "
            f"such as {shown(changed[0])}: read as folders"
        )
    return places
