"""`detect.py --explain` from the command line."""

from pathlib import Path

import cv2

from tests.cli.command_line import CommandLine
from tests.saying import assert_says


def test_one_sheet_for_each_image(cli: CommandLine, data: Path, trained: Path, tmp_path: Path) -> None:
    shared = (
        "--weights",
        trained / "weights" / "best.pt",
        "--source",
        data.parent / "images" / "val",
        "--device",
        "cpu",
        "--project",
        tmp_path,
    )
    out = cli("detect.py", *shared, "--explain", "--amp", "bf16").done()
    assert_says(out, "--explain", "float32", "2 Conv, 3 Conv, 4 Conv", "none")
    assert_says(out, "4 contact sheets", tmp_path / "exp" / "explain")
    sheets = [cv2.imread(str(tmp_path / "exp" / "explain" / f"val{number}.png")) for number in range(4)]
    assert all(sheet.shape[1] > 600 for sheet in sheets)
    out = cli("detect.py", *shared, "--explain", "1", "--nosave").done()
    assert_says(out, "maps of 1 Conv;")
    cli("detect.py", *shared, "--explain", "Konv").refused("--explain Konv", "0..5", "'Conv'")
