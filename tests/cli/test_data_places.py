"""train.py and val.py say which files they read."""

from collections.abc import Callable
from pathlib import Path

from tests.cli.command_line import CommandLine, Finished, write_data
from tests.saying import assert_says


def test_folders_are_printed_and_the_working_folder_is_not_taken_for_them(
    train: Callable[..., Finished], cli: CommandLine, trained: Path, tmp_path: Path
) -> None:
    names = "names: [red, green, blue]\n"
    data = write_data(tmp_path / "ds")
    data.write_text(f"train: ../images/train\nval: ../images/val\nlicense: CC0\n{names}")
    write_data(tmp_path / "other", train=2, val=2)
    (tmp_path / "other" / "repo").mkdir()
    (tmp_path / "ds" / "images" / "again").symlink_to("train")
    (tmp_path / "ds" / "labels" / "again").symlink_to("train")
    linked = tmp_path / "ds" / "linked.yaml"
    linked.write_text(f"train: images/train\nval: images/again\n{names}")

    weights = trained / "weights" / "last.pt"
    out = cli(
        *("val.py", "--weights", weights, "--data", data, "--img", 64, "--device", "cpu", "--project", tmp_path),
        *("--workers", 0, "--noplots"),
        cwd=tmp_path / "other" / "repo",
    ).done()
    assert_says(out, f"{tmp_path}/ds/images/val: 4 images, labels in {tmp_path}/ds/labels/val")
    assert_says(out, "'../images/val'", f"{tmp_path}/images/val", "license")
    assert str(tmp_path / "other") not in out

    out = train("--data", linked).done()
    assert_says(out, f"{tmp_path}/ds/images/train: 8 images, labels in {tmp_path}/ds/labels/train")
    assert_says(out, f"{tmp_path}/ds/images/again: 8 images, labels in {tmp_path}/ds/labels/again")
    assert_says(out, "8 of 8", f"{tmp_path}/ds/images/again/train0.jpg")
