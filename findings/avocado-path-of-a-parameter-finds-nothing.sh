#!/bin/sh
# avocado's params.get() finds no value by the path that `avocado variants -c` shows for it: the path of a leaf wants
# a slash or a star behind it, and without it the default is taken.
#
# Guess: "/run/cpu/intel" is the place that is printed as "/run/cpu/intel:model"; or a path that can match nothing is
# an error.
# Seen on 2026-11-30, avocado-framework and its yaml-to-mux plugin 113.0 (Python 3.11): "/run/cpu/intel" and "*/intel"
# give the default, "/run/cpu/intel/" and "/run/cpu/intel/*" the value, and "/run/cpu/" the default again, which ends
# in a slash as well. A parameter that was asked for by its place is silently the default's, in each variant. No word
# on it was found.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
    avocado-framework==113.0 avocado-framework-plugin-varianter-yaml-to-mux==113.0
cat >machines.yaml <<"YAML"
cpu: !mux
  intel:
    model: host
  amd:
    model: epyc
YAML
cat >test_model.py <<"PROGRAM"
from avocado import Test


class Machine(Test):
    def test(self):
        with open("seen", "a") as seen:
            for path in "/run/cpu/intel", "*/intel", "/run/cpu/intel/", "/run/cpu/intel/*", "/run/cpu/", "/run/cpu/*":
                print(path, "gives", self.params.get("model", path, default="the default"), file=seen)
PROGRAM
only="-m machines.yaml --mux-filter-only /run/cpu/intel"
venv/bin/avocado variants -c $only | grep "=>" | tr -s " " >seen
venv/bin/avocado run --disable-sysinfo $only -- test_model.py >log 2>&1
cat seen
cmp seen - <<"SEEN"
 /run/cpu/intel:model => host
/run/cpu/intel gives the default
*/intel gives the default
/run/cpu/intel/ gives host
/run/cpu/intel/* gives host
/run/cpu/ gives the default
/run/cpu/* gives host
SEEN
