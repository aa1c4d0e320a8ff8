"""Ranks: what torchrun says, what they exchange, and how they end when one of them fails."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.saying import assert_says
from utils import ranks
from utils.errors import SettingsError
from utils.precision import choose_device, device_of_rank

REPOSITORY = Path(__file__).parents[2]
WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


def torchrun(*words: object, processes: int = 2, timeout: int = 100, restarts: int = 0) -> tuple[int, str, str]:
    """Run a script in several processes; return torchrun's exit status, standard output and standard error."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["--max-restarts", str(restarts)]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    if sys.platform == "linux":  # also where the machine's own name leads nowhere
        variables["GLOO_SOCKET_IFNAME"] = "lo"
    done = subprocess.run(
        [*command, *map(str, words)], env=variables, capture_output=True, text=True, timeout=timeout, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_a_process_alone_gets_back_what_it_gives():
    with ranks.joined(torch.device("cpu")) as launch:
        assert (launch.rank, launch.size) == (0, 1)
        assert ranks.summed(torch.tensor(3.0)) == 3
        assert ranks.gathered("a") == ["a"]
        assert ranks.from_first("a") == "a"
        ranks.check_same("data", 1, "")
    assert ranks.is_first()


def test_the_environment_is_read_whole():
    assert ranks.read_launch({}) is None
    launch = ranks.read_launch(WHOLE | {"TORCHELASTIC_RUN_ID": "job7", "TORCHELASTIC_RESTART_COUNT": "2"})
    assert launch == ranks.Launch(1, 2, 1, 2, "job7")


def test_two_launches_without_an_id_are_told_apart():
    """A restart must never go on with the run of another launch, though process numbers come again."""
    first, again, other = (
        ranks.read_launch(WHOLE | {"TORCHELASTIC_ERROR_FILE": place}).identity
        for place in (
            "/tmp/torchelastic_a/none_x/attempt_0/0/error.json",
            "/tmp/torchelastic_a/none_x/attempt_1/0/error.json",
            "/tmp/torchelastic_b/none_x/attempt_0/0/error.json",
        )
    )
    assert first == again != other


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_world_size_by_hand_is_refused(missing):
    with pytest.raises(SettingsError) as caught:
        ranks.read_launch({name: value for name, value in WHOLE.items() if name != missing})
    assert_says(caught.value, "WORLD_SIZE=2", missing, "torchrun")


def test_values_that_are_no_numbers_are_refused():
    with pytest.raises(SettingsError) as caught:
        ranks.read_launch(WHOLE | {"RANK": "one"})
    assert_says(caught.value, "RANK", "one")


def test_several_devices_are_answered_by_the_command_to_type(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/train.py"])
    with pytest.raises(SettingsError) as caught:
        choose_device("0,1,2")
    assert_says(caught.value, "--device 0,1,2", "torchrun --standalone --nproc-per-node 3 train.py")


def test_each_rank_takes_a_device_of_the_list():
    assert [device_of_rank("2,5", rank) for rank in (0, 1)] == ["2", "5"]
    with pytest.raises(SettingsError) as caught:
        device_of_rank("2", 1)
    assert_says(caught.value, "--device 2")


@pytest.mark.slow
def test_ranks_exchange_values_and_the_first_prints(tmp_path):
    status, out, err = torchrun(REPOSITORY / "tests" / "utils" / "rank_script.py", "exchange", tmp_path)
    assert status == 0, err
    for rank in (0, 1):
        one = json.loads((tmp_path / f"{rank}.json").read_text())
        assert one["rank"] == rank
        assert one["size"] == 2
        assert one["sum"] == [3.0]
        assert one["gathered"] == [0, 10]
        assert one["first"] == "of 0"
        assert one["shared"] == [0.0, 0.0]
    assert out.count("printed by the first rank only") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "facts"),
    [
        ("differ", ("rank 0", "plug-in", "digest0", "rank 1", "digest1")),
        ("raise", ("rank 1", "the picture cannot be read")),
        ("hang", ("rank 1", "disk full", "last.pt")),
    ],
)
def test_a_rank_that_fails_ends_all_with_one_message(what, facts):
    start = time.monotonic()
    status, _, err = torchrun(REPOSITORY / "tests" / "utils" / "rank_script.py", what)
    assert time.monotonic() - start < 60
    assert status != 0
    messages = [line for line in err.splitlines() if line.startswith("rank ")]
    assert len(messages) == 1, err
    assert_says(messages[0], *facts)


def test_of_mappings_only_what_differs_is_shown(monkeypatch):
    monkeypatch.setattr(ranks, "gathered", lambda value: [value, value | {"batch": 8}])
    with pytest.raises(SettingsError) as caught:
        ranks.check_same("flags", {"batch": 16, "img": 640}, "start all processes with the same flags")
    assert_says(caught.value, "flags", "rank 0", 16, "rank 1", 8)
    assert "640" not in str(caught.value)
