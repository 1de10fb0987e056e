#!/bin/sh
# jc describes a counter of /proc/interrupts that has no description by the line above: errors are "Machine check
# polls".
#
# Guess: no type for ERR and MIS, which the kernel prints as a name and one number.
# Seen on 2026-11-30, jc 1.26.1 (Python 3.11): type is what the line above has, so that three bad interrupts of a
# guest are three machine check polls to whoever groups by type. A device that shares its interrupt is "virtio0,",
# with the comma.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check jc==1.26.1

# As an x86-64 guest with two processors has it, with lines left out.
cat >interrupts <<"INTERRUPTS"
           CPU0       CPU1
 11:         12          0   IO-APIC  11-fasteoi   virtio0, virtio1
MCE:          0          0   Machine check exceptions
MCP:          2          2   Machine check polls
ERR:          3
MIS:          0
PIN:          0          0   Posted-interrupt notification event
INTERRUPTS
venv/bin/jc --proc-interrupts <interrupts >interrupts.json
python3 -c '
import json
for line in json.load(open("interrupts.json")):
    print(line["irq"], line["interrupts"], line["type"], line["device"])' | tee seen
cmp seen - <<"SEEN"
11 [12, 0] IO-APIC ['11-fasteoi', 'virtio0,', 'virtio1']
MCE [0, 0] Machine check exceptions None
MCP [2, 2] Machine check polls None
ERR [3] Machine check polls None
MIS [0] Machine check polls None
PIN [0, 0] Posted-interrupt notification event None
SEEN
