#!/bin/sh
# dt-validate ends with status 0 for a device tree that breaks its schema; its brother for schemas does not.
#
# Guess: non-zero when it has printed a violation, as dt-doc-validate of the same package ends on a schema that breaks
# its meta-schema.
# Seen on 2026-11-30, dtschema 2026.9 (Python 3.11): a required property is missing and another is not allowed, both
# are printed, on stderr, and the status is 0; no option asks for another. A step of CI that runs it on the tree that
# `-machine virt,dumpdtb=` wrote passes whatever is in it.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
# Debian 12's packages and what they need, unpacked here by an apt that sees nothing as installed.
mkdir -p lists/partial cache/archives/partial
: >status
fetch() {
    apt-get -qq -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o Dir::State::status="$work/status" \
        -o APT::Sandbox::User= -o Debug::NoLocking=1 "$@"
}
fetch update
fetch install --yes --download-only --no-install-recommends device-tree-compiler=1.6.1-4+b1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check dtschema==2026.9
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }

mkdir schemas
cat >schemas/thing.yaml <<"SCHEMA"
# SPDX-License-Identifier: BSD-2-Clause
%YAML 1.2
---
$id: http://devicetree.org/schemas/thing.yaml#
$schema: http://devicetree.org/meta-schemas/core.yaml#
title: A thing
maintainers:
  - Some One <some.one@example.org>
properties:
  compatible:
    const: vendor,thing
  reg:
    maxItems: 1
required:
  - compatible
  - reg
additionalProperties: false
SCHEMA
cat >tree.dts <<"TREE"
/dts-v1/;
/ { thing { compatible = "vendor,thing"; color = <1>; }; };
TREE
run dtc -q -O dtb -o tree.dtb tree.dts
status=0
venv/bin/dt-validate --schema schemas tree.dtb 2>said || status=$?
grep "(vendor,thing)" said
echo "dt-validate: $status"
[ "$status" = 0 ]
grep -q "'reg' is a required property" said
mkdir untitled
sed '/^title/d' schemas/thing.yaml >untitled/thing.yaml
! venv/bin/dt-doc-validate untitled 2>said
grep "'title' is a required property" said
