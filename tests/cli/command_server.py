"""Runs scripts in forks of one process that has the heavy libraries loaded, which saves seconds for each.

Every line of the standard input is a JSON object: "argv" (a script and its arguments, or "-m", a module and its
arguments), "cwd", "env", "output" (a folder for `stdout` and `stderr`). Every line of the standard output is the exit
status of one of them.
"""

import importlib
import json
import os
import runpy
import sys
from pathlib import Path

import cv2  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import pycocotools.cocoeval  # noqa: F401
import torch.optim
import torch.utils.flop_counter
import torchvision  # noqa: F401

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[0] = str(REPOSITORY)
for module in ("train", "val", "detect", "export"):
    importlib.import_module(module)  # what the scripts import; a fork of their own is all that they change
torch.relu(torch.empty(1, device="meta"))  # the first operation on the meta device imports for a second


def redirect(descriptor: int, path: str) -> None:
    """Send what is written to a file descriptor to a file."""
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)


def serve() -> dict:
    """Fork for every request; return it in the child. The parent never returns: it exits when there are no more."""
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            return request
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    os._exit(0)


def run(argv: list[str]) -> int:
    """Run a script or module as the interpreter does; return its exit status."""
    as_module = argv[0] == "-m"
    sys.argv = argv[as_module:]
    try:
        if as_module:
            sys.modules.pop(sys.argv[0], None)  # a module that is loaded already is warned of
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        return int(error.code or 0)
    return 0


request = serve()
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
redirect(1, f"{request['output']}/stdout")
redirect(2, f"{request['output']}/stderr")
os.chdir(request["cwd"])
os.environ.clear()
os.environ.update(request["env"])
status = run(request["argv"])
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)  # taking the interpreter down would take as long as everything else
