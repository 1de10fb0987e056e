#!/bin/sh
# A filter of avocado's variants that names nothing leaves one variant, without a value: the test runs once with its
# defaults, and passes.
#
# Guess: no variant is left, so that nothing runs and the job fails; or an error that names the path which is not
# there.
# Seen on 2026-11-30, avocado-framework and its yaml-to-mux plugin 113.0 (Python 3.11): `--mux-filter-only
# /run/cpu/intle` leaves out both children of /run/cpu, and what is left is their parent, which is now a leaf and
# hence a variant. So is it where `--mux-filter-out` leaves out each child. Of a misspelt `--mux-filter-out` nothing
# is said either. No word on it was found.
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
        with open("ran", "a") as ran:
            print(self.name.uid, self.params.get("model", default="a default"), file=ran)
PROGRAM
for filter in "only /run/cpu/intel" "only /run/cpu/intle"; do
    rm -f ran
    status=0
    venv/bin/avocado run --disable-sysinfo -m machines.yaml --mux-filter-$filter -- test_model.py \
        >log 2>&1 || status=$?
    echo "$filter: status $status"
    venv/bin/avocado variants -m machines.yaml --mux-filter-$filter | sed -n "s/^Variant \(.*\)-[0-9a-f]*: */  variant \1 /p"
    sed "s/^/  test ran /" ran
done | tee seen
cmp seen - <<"SEEN"
only /run/cpu/intel: status 0
  variant run-cpu-intel /run/cpu/intel
  test ran 1 host
only /run/cpu/intle: status 0
  variant run-cpu /run/cpu
  test ran 1 a default
SEEN
