# Copyright (c) MONAI Consortium
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""`python -m MODULE …` in a fork of a Python that has imported the heavy packages before: a command is spared their
seconds, and is otherwise run as a user runs it. This bundle's `scripts` are not imported before."""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PACKAGES = ("monai.bundle", "monai.engines", "monai.handlers", "monai.inferers", "monai.losses", "monai.metrics")
PACKAGES += ("monai.networks.nets", "monai.transforms", "nibabel", "scipy.ndimage", "fire", "ignite.metrics")


class WarmPython:
    """Starts that Python at its first command, and ends it with this process.

    Args:
        environment: variables of all commands.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.server: subprocess.Popen | None = None

    def run(
        self, module: str, words: Sequence[str], cwd: Path, timeout: float, processes: int = 1
    ) -> subprocess.CompletedProcess:
        """What `subprocess.run` of `python -m MODULE WORDS` returns, with its output as text; of several processes at once
        that find the variables by which torchrun lets them find each other, what all of them print, and a code that is 0
        where all of theirs are."""
        if self.server is None or self.server.poll() is not None:
            self.server = subprocess.Popen(
                [sys.executable, __file__], env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in ("stdout", "stderr")]
            order = {"module": module, "words": list(words), "cwd": str(cwd), "files": list(map(str, files))}
            order["environments"] = [{}] if processes == 1 else torchrun_variables(processes)
            self.server.stdin.write(json.dumps(order).encode() + b"\n")
            self.server.stdin.flush()
            if not select.select([self.server.stdout], [], [], timeout)[0]:
                self.server.kill()
                raise subprocess.TimeoutExpired([module, *words], timeout)
            code = int(self.server.stdout.readline())
            return subprocess.CompletedProcess([module, *words], code, *(file.read_text() for file in files))


def torchrun_variables(processes: int) -> list[dict[str, str]]:
    """Those of the environment that torchrun sets, for each of its processes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    own = ({"RANK": rank, "LOCAL_RANK": rank} for rank in range(processes))
    return [{name: str(value) for name, value in {**shared, **ranks}.items()} for ranks in own]


def serve() -> None:
    """Run what stdin orders, line by line, each in forks; print how each ended."""
    for package in PACKAGES:
        importlib.import_module(package)
    # Forks would copy all of it only to look for garbage.
    gc.freeze()
    for line in sys.stdin:
        order, children = json.loads(line), []
        for environment in order.pop("environments"):
            if not (child := os.fork()):
                os.environ.update(environment)
                return run_module(**order)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(next((code for code in codes if code), 0), flush=True)


def run_module(module: str, words: Sequence[str], cwd: str, files: Sequence[str]) -> None:
    """Be `python -m MODULE WORDS` in the folder `cwd`, with stdout and stderr at the end of two files."""
    for target, path in enumerate((os.devnull, *files)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), target)
    os.chdir(cwd)
    sys.path[0] = cwd
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve()
