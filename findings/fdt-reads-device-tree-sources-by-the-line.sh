#!/bin/sh
# fdt reads the source of a device tree line by line: what is valid and written otherwise is lost or another value.
#
# Guess: parse_dts() gives what dtc makes of the same source, or raises for what it does not know.
# Seen on 2026-11-29, fdt 0.3.3 (Python 3.11): a node on one line is left out, and what follows it too; a text loses its
# semicolon; after `//` in a text, as in an address of the web, the property is gone; a number beside a text is the text
# "<5>". No error in any of them.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check fdt==0.3.3
cat >read.py <<"PROGRAM"
import fdt

for line in ("node { reg = <1>; };\n after = <2>;", 'a = "x;y";', 'b = "http://example.org/";', 'c = "text", <5>;'):
    root = fdt.parse_dts("/dts-v1/;\n/ {\n" + line + "\n};\n").root
    print(line.replace("\n", ""), "->", [node.name for node in root.nodes], [list(item) for item in root.props])
PROGRAM
venv/bin/python read.py | tee seen
grep -qxF "node { reg = <1>; }; after = <2>; -> [] []" seen
grep -qF "[['xy']]" seen
grep -qxF 'b = "http://example.org/"; -> [] []' seen
grep -qF "[['text', '<5>']]" seen
