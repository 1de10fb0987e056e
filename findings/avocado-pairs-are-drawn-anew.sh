#!/bin/sh
# The varianter for pairs of parameters (CIT) makes other variants in every run, and there is no seed to ask for.
#
# Guess: a covering array is computed, so that the same file of parameters gives the same variants, and the same test ids.
# Seen on 2026-11-28, avocado-framework-plugin-varianter-cit 113.0, Python 3.11: three runs over the same file gave three
# different sets of 12 variants. Results of two nights cannot be compared by test id, and a failure's variant may not
# exist in the next run.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check avocado-framework==113.0 avocado-framework-plugin-varianter-cit==113.0
cd "$work"
printf "PARAMETERS\ncpus[1, 2, 4, 8]\nmachine[q35, pc, microvm]\niommu[on, off]\n\nCONSTRAINTS\n" >parameters
for run in 1 2 3 4 5; do
    venv/bin/avocado variants --cit-parameter-file parameters --cit-order-of-combinations 2 | grep "^Variant" | sort >"run-$run"
done
cat run-1
if venv/bin/avocado variants --help | grep -i seed; then exit 1; fi
different=$(sha256sum run-* | cut -d " " -f 1 | sort -u | wc -l)
echo "$different different sets in 5 runs"
[ "$different" -gt 1 ]
