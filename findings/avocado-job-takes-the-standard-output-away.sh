#!/bin/sh
# After a job of avocado's that was to show nothing, nothing that the program prints is seen any more.
#
# Guess: `core.show` says what avocado prints; the standard output of the program that runs the job stays its own.
# Seen on 2026-11-29, avocado-framework 113.0, Python 3.11: with ["none"], and with the empty list as well, Job.run() leaves a
# sys.stdout that goes to /dev/null; the original is never put back. A report printed after the job is lost, without an
# error and with status 0. With ["app"] it is there.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check avocado-framework==113.0
cat >embed.py <<"PROGRAM"
import os
import sys

from avocado.core.job import Job

config = {
    "resolver.references": ["/bin/true"],
    "core.show": sys.argv[1].split(),
    "sysinfo.collect.enabled": False,
    "run.results_dir": os.path.abspath("results"),
}
print("before the job")
with Job.from_config(config) as job:
    status = job.run()
print("after the job")
sys.exit(status)
PROGRAM
for show in app none ""; do
    venv/bin/python embed.py "$show" >out 2>err
    echo "core.show [$show]: status $?, printed:$(grep " the job$" out | sed "s,^, ,;s,$,.," | tr -d "\n")"
done | tee seen
cmp seen - <<"SEEN"
core.show [app]: status 0, printed: before the job. after the job.
core.show [none]: status 0, printed: before the job.
core.show []: status 0, printed: before the job.
SEEN
