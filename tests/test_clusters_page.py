"""docs/clusters.md: the script parses, the Job is valid yaml, and the flags exist."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from train import parse_options

PAGE = (Path(__file__).parents[1] / "docs" / "clusters.md").read_text()


def block(name: str) -> str:
    """Return the code block after a mark."""
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    "text", [block("sbatch"), yaml.safe_load(block("job"))["spec"]["template"]["spec"]["containers"][0]["args"][0]]
)
def test_scripts_parse_and_name_flags_that_exist(text):
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    flags = re.search(r"flags=[(\"](--cfg.*?)[)\"]\n", text)
    assert flags is not None
    options = parse_options(shlex.split(flags[1]))
    assert options.batch in (64, 128)
    assert "--max-restarts" in text
