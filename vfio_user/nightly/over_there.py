"""What runs on a slot, with our package there: it makes the slot ready, and runs one test of avocado's.

    python -m vfio_user.nightly.over_there ready REQUEST
    python -m vfio_user.nightly.over_there run FOLDER ARGUMENT...

`ready` answers with JSON: the machine, QEMUs and kernel. `run` does what avocado's runner does (task-run ARGUMENT...),
with messages as lines on stdout in place of a connection to the job; what the test left in FOLDER comes as one more,
before the message that it has finished.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER_MESSAGE = "folder"
"""The type of the message with what a test left: `archive` is a tar.gz."""


def ready(request: str) -> None:
    """Find QEMUs and images, which are fetched where they are missing."""
    from vfio_user.nightly.place import Here

    wanted = json.loads(request)
    found = Here(1).make_ready(wanted["qemus"], wanted["images"], lambda said: print(said, file=sys.stderr))
    answer = {
        "machine": found.slots[0].machine.model_dump(),
        "qemus": dict(found.qemus),
        "missing": dict(found.missing),
        "kernel": found.kernel,
    }
    print(json.dumps(answer), flush=True)


def run(folder: str, arguments: Sequence[str]) -> None:
    """Run a test whose files are to be in `folder`, which is gone afterwards."""
    from avocado.core.nrunner.task import json_dumps
    from avocado.plugins.runners.avocado_instrumented import RunnerApp

    messages = os.fdopen(os.dup(1), "w", buffering=1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)

    def tell(message: dict[str, Any]) -> None:
        if message.get("status") == "finished":
            archive = _archived(Path(folder))
            print(json_dumps({"type": FOLDER_MESSAGE, "archive": archive}), file=messages, flush=True)
        print(json_dumps(message), file=messages, flush=True)

    class App(RunnerApp):  # type: ignore[misc]  # avocado has no types
        """Avocado's program for one test."""

        def command_task_run(self, args: dict[str, Any]) -> None:
            """Runs a task from arguments"""
            from avocado.core.nrunner.runnable import Runnable
            from avocado.core.nrunner.task import Task

            from vfio_user.avocado_job.forks import Runner, have_our_runner
            from vfio_user.bundle.of_tests import OUTSIDE

            runnable = Runnable.from_args(args)
            runnable.output_dir = folder
            if runnable.kind == Runner.name:
                have_our_runner(runnable)
            if runnable.uri.startswith("/"):
                runnable.uri = f"{OUTSIDE}{runnable.uri}"
            task = Task(runnable, args["identifier"], [], category=args["category"], job_id=args["job_id"])
            for message in task.run():
                tell(message)

    Path(folder).mkdir(parents=True)
    sys.path.insert(0, str(Path.cwd()))
    sys.argv = ["avocado-runner-avocado-instrumented", "task-run", *arguments]
    try:
        App().run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _archived(folder: Path) -> bytes:
    """What is in a folder; a socket that is still there is nothing to keep."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz", compresslevel=1) as archive:
        archive.add(folder, ".")
    return written.getvalue()


if __name__ == "__main__":
    if sys.argv[1] == "ready":
        ready(sys.argv[2])
    else:
        run(sys.argv[2], sys.argv[3:])
