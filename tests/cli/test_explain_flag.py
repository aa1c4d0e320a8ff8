"""`detect.py --explain` from the command line."""

from pathlib import Path

import cv2

from tests.cli.command_line import CommandLine


def test_one_sheet_a_image(cli: CommandLine, data: Path, trained: Path, tmp_path: Path) -> None:
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
    assert (
        "--explain: in float32; class-activation maps of 2 Conv, 3 Conv, 4 Conv; modules that explain themselves: none"
        in out
    )
    assert f"4 contact sheets: {tmp_path / 'exp' / 'explain'}" in out
    sheets = [cv2.imread(str(tmp_path / "exp" / "explain" / f"val{number}.png")) for number in range(4)]
    assert all(sheet.shape[1] > 600 for sheet in sheets)
    out = cli("detect.py", *shared, "--explain", "1", "--nosave").done()
    assert "class-activation maps of 1 Conv;" in out
    cli("detect.py", *shared, "--explain", "Konv").refused(
        "--explain Konv: no such layer: expected 0..5", "Did you mean 'Conv'?"
    )
