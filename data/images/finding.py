"""Find the images of a folder: which files are images, where links lead, and what else lies there."""

import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

IMAGE_SUFFIXES = frozenset(
    (
        *(".avif", ".bmp", ".dng", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png"),
        *(".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    )
)
HEADER_BYTES = 32
HEADERS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
}
BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), "HEIC"),
}


def is_image(path: str | Path) -> bool:
    """Tell by the suffix, in upper or lower case, whether a file is an image."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def image_format(path: str | Path) -> str:
    """Return the format of an image file, told from its first bytes; "" if they are those of no image."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEADER_BYTES)
    except (OSError, ValueError):
        return ""
    if head[4:8] == b"ftyp":
        return BRANDS.get(head[8:12], "")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:2] == b"BM" and int.from_bytes(head[2:6], "little") == os.path.getsize(path):
        return "BMP"
    if head[:1] == b"P" and head[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6") and head[2:3] in (b"\n", b" ", b"\r"):
        return "PNM"
    return next((name for start, name in HEADERS.items() if head.startswith(start)), "")


@dataclass
class FolderContent:
    """The files of a folder and its subfolders, without hidden ones.

    Attributes:
        images: files that are images by their suffix, sorted by path.
        others: all other files, sorted by path.
        loops: links to folders that contain the link; they are not followed.
        dead: links that lead nowhere, other than those with the suffix of an image.
        closed: folders that cannot be read, and devices and pipes, with the reason.
    """

    images: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    loops: list[Path] = field(default_factory=list)
    dead: list[Path] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)


def read_folder(folder: Path) -> FolderContent:
    """List the files of a folder and its subfolders.

    Paths keep the names of links. A link to a folder is followed once, after the folders that are no links; a link to
    a folder that contains the link is not followed.
    """
    content, links, followed = FolderContent(), deque[str](), set[tuple[int, int]]()
    _read_tree(str(folder), content, links)
    while links:
        link = links.popleft()
        status = os.lstat(link)
        if (status.st_dev, status.st_ino) in followed:
            continue
        followed.add((status.st_dev, status.st_ino))
        if _leads_to_itself(link):
            content.loops.append(Path(link))
        else:
            _read_tree(link, content, links)
    content.images.sort(key=str)
    content.others.sort(key=str)
    return content


def _read_tree(folder: str, content: FolderContent, links: deque[str]) -> None:
    """Add the files of a folder and its real subfolders to `content`, and the links to folders to `links`."""
    todo = [folder]
    while todo:
        folder = todo.pop()
        try:
            with os.scandir(folder) as scan:
                entries = sorted((entry for entry in scan if not entry.name.startswith(".")), key=lambda one: one.name)
        except OSError as error:
            content.closed.append(f"{folder}: {error.strerror}")
            continue
        for entry in entries:
            path = entry.path
            if is_link := entry.is_symlink():
                is_folder, is_file, is_dead = os.path.isdir(path), os.path.isfile(path), not os.path.exists(path)
            else:
                is_folder, is_file, is_dead = entry.is_dir(), entry.is_file(), False
            if is_folder:
                (links if is_link else todo).append(path)
            elif is_image(path) and (is_file or is_dead):
                content.images.append(Path(path))
            elif is_file:
                content.others.append(Path(path))
            elif is_dead:
                content.dead.append(Path(path))
            else:
                content.closed.append(f"{path}: a device or a pipe")


def _leads_to_itself(link: str) -> bool:
    """Tell whether a link leads to a folder that contains it, by its real place or by the way that led to it."""
    target, place = os.path.realpath(link), Path(os.path.realpath(os.path.dirname(link)))
    on_the_way = {os.path.realpath(parent) for parent in Path(link).parents}
    return target in on_the_way or Path(target) in (place, *place.parents)
