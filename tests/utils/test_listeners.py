"""Who hears of a run: TensorBoard, listeners of a file, and the examples of docs/logging.md with stand-ins."""

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.saying import assert_says
from utils.errors import SettingsError
from utils.listeners import Listener, RunFacts, open_listeners

PAGE = Path(__file__).parents[2] / "docs" / "logging.md"
FILE = """
from utils.listeners import Listener

class Mine(Listener):
    def epoch(self, run, number, numbers):
        (run.folder / "heard.txt").write_text(f"{number} {numbers['metrics/mAP_0.5']}")
"""


@pytest.fixture
def run(tmp_path: Path) -> RunFacts:
    """A run of one epoch."""
    (tmp_path / "results.csv").write_text("epoch\n1\n")
    return RunFacts(tmp_path, {"epochs": 3}, {"lr0": 0.01, "loss": {}}, 1)


def tell(names: list[str], run: RunFacts, error: BaseException | None = None) -> None:
    """Tell everything about a run of one epoch."""
    audience = open_listeners(names)
    audience.start(run)
    audience.epoch(run, 1, {"metrics/mAP_0.5": 0.5, "train/box_loss": 2.0})
    audience.end(run, error)


def test_a_listener_of_a_file_hears_what_it_wants_to(run, tmp_path):
    path = tmp_path / "my_log.py"
    path.write_text(FILE)
    tell([str(path)], run)
    assert (tmp_path / "heard.txt").read_text() == "1 0.5"


@pytest.mark.parametrize(
    ("name", "text", "facts"),
    [
        ("tensorbord", None, ("tensorbord", "tensorboard")),
        ("gone.py", None, ("gone.py",)),
        ("empty.py", "x = 1", ("empty.py", "Listener")),
        ("broken.py", "import no_such_package", ("broken.py", "no_such_package")),
    ],
)
def test_what_is_no_listener_is_refused(name, text, facts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path(name).write_text(text)
    with pytest.raises(SettingsError) as caught:
        open_listeners([name])
    assert_says(caught.value, *facts)


def test_tensorboard_is_written_or_its_absence_said(run, tmp_path, monkeypatch):
    written: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            written.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, number: int) -> None:
            written.append((name, value, number))

        def flush(self) -> None:
            pass

        def close(self) -> None:
            written.append("closed")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    tell(["tensorboard"], run)
    assert written[0] == (str(tmp_path / "tensorboard"), 2), "a run that goes on replaces nothing of its first epoch"
    assert ("metrics/mAP_0.5", 0.5, 1) in written
    assert written[-1] == "closed"
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SettingsError) as caught:
        tell(["tensorboard"], run)
    assert_says(caught.value, "tensorboard", "pip install")


class Recorder(ModuleType):
    """A package that records every call of its functions, and of what these return."""

    def __init__(self, name: str, calls: list[Any]) -> None:
        super().__init__(name)
        self.calls = calls

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **settings: Any) -> Any:
            self.calls.append((name, arguments, settings))
            return SimpleNamespace(
                log=lambda *a, **s: self.calls.append(("log", a, s)),
                finish=lambda *a, **s: self.calls.append(("finish", a, s)),
            )

        return call


@pytest.mark.parametrize("package", ["mlflow", "wandb"])
def test_the_examples_of_the_page_run(package, run, tmp_path, monkeypatch):
    """Each is at most 20 lines, contacts no server, and logs the epoch's numbers."""
    found = re.search(rf"<!-- listener: {package} -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    assert len(found[1].splitlines()) <= 20
    path, calls = tmp_path / f"{package}_log.py", []
    path.write_text(found[1])
    monkeypatch.setitem(sys.modules, package, Recorder(package, calls))
    tell([str(path)], run, RuntimeError("lost"))
    text = str(calls)
    assert_says(text, "metrics/mAP_0.5", 0.5)
    assert "file:" in text or "offline" in text
    assert calls[-1][0] in ("end_run", "finish")


def test_a_listener_may_leave_everything_out(run):
    listener = Listener()
    assert listener.start(run) is listener.epoch(run, 1, {}) is listener.end(run, None) is None
