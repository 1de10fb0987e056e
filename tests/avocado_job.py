"""A job of avocado's, run as `vfio-user test-e2e` runs it, with bounds for tests of these: one test file, few seconds.

    python -m tests.avocado_job FILE RESULTS SILENCE [GRACE [LOST]]

Prints the verdict of each test, > NAME: STATUS: REASON. Status 3 where the job hung.
"""

from __future__ import annotations

import sys

from vfio_user.avocado_job import job as avocado_job
from vfio_user.avocado_job.ending import Ending


def main(file: str, results: str, silence: float, grace: float = 30.0, lost: float = avocado_job.LOST_SECONDS) -> int:
    config = {
        "resolver.references": [file],
        "run.max_parallel_tasks": 1,
        "run.results_dir": results,
        "run.status_server_auto": True,
        "run.spawner": avocado_job.spawner(),
        "core.show": ["app"],
        "sysinfo.collect.enabled": False,
    }
    job = avocado_job.make_job(config)
    ending = Ending()
    with job, ending.noticed(job):
        try:
            with avocado_job.watched(job, silence, print, grace=grace, lost=lost):
                job.run()
        except avocado_job.JobHangs as error:
            print(error)
            return 3
        for test in ending.tests(job):
            print(f"ended in {test['name']}")
        for test in job.result.tests:
            print(f"> {test['name']}: {test['status']}: {test.get('fail_reason')}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], *map(float, sys.argv[3:])))
