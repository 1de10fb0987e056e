#!/bin/sh
# Some PCI addresses are numbers in YAML, for example 0000:01:00.0, and others are not, so that a matrix of devices
# works until it has that one.
#
# Guess: what has two colons and a dot is text.
# Seen on 2026-11-29, PyYAML 6.0.3 and avocado's yaml_to_mux 113.0 (Python 3.11): 0000:01:00.0 and 01:00.0 are 60.0,
# 0000:10:00.0 is 600.0, numbers to the base of 60 (YAML 1.1, "float"); 0000:0a:00.0 is text. A test has the number as
# its parameter, without a word.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check avocado-framework==113.0 avocado-framework-plugin-varianter-yaml-to-mux==113.0 PyYAML==6.0.3
cat >devices.yaml <<"YAML"
device: !mux
  one:
    address: 0000:01:00.0
  two:
    address: 0000:10:00.0
  ten:
    address: 0000:0a:00.0
  short:
    address: 01:00.0
YAML
venv/bin/avocado variants -m devices.yaml -c | grep "=>" | sed "s/ *//" | sort | tee seen
[ "$(sed "s/.*=> //" seen | sort | tr "\n" " ")" = "0000:0a:00.0 60.0 60.0 600.0 " ]
