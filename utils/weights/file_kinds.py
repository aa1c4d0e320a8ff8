"""Describe files that were given as weights and hold none."""

import re
from pathlib import Path

WEB_PAGE = re.compile(
    rb"\s*(?:<!--.*?-->\s*|<\?xml[^>]*>\s*)*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)


def describe_file(path: Path) -> str:
    """Say what a file without weights is, and what was expected."""
    with path.open("rb") as file:
        start = file.read(1024)
    if not start:
        return "is empty: expected weights; the download or copy may have failed"
    if WEB_PAGE.match(start.removeprefix(b"\xef\xbb\xbf")):
        return "is a web page, probably for download or login: expected weights; download the file itself"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer: expected weights; run 'git lfs pull'"
    return "is not a weights file: expected a checkpoint, a state dict of torch.save or a .safetensors file"
