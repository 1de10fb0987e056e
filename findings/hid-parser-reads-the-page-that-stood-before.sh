#!/bin/sh
# hid-parser reads the usages of a HID report descriptor otherwise than the specification has it: a page that is
# declared behind a usage, a usage of 32 bits, and a last usage for the fields that are left.
#
# Guess: what hid-tools has of the same bytes. HID 1.11 says of a usage of four bytes that its upper half is the page,
# of a shorter one that the page is joined to it when the main item comes, and of too few usages that the last one is
# for all fields that remain.
# Seen on 2026-11-30, hid-parser 0.1.0 beside hid-tools 0.12 (Python 3.11): eight buttons whose page is declared
# behind the usage are one "Pointer" of the page before; usage 00010030 (X) of four bytes is "0x10030" of whatever
# page is in force; of four fields with two usages two are lost, so that the report is 16 bits long, not 32. A warning
# (HIDComplianceWarning) is given for the missing usages only, where the descriptor complies. Push and pop raise
# NotImplementedError. Not in the issues of usb-tools/python-hid-parser found by a search.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check hid-parser==0.1.0 hid-tools==0.12
cat >read.py <<"PROGRAM"
import hid_parser
from hidtools.hid import ReportDescriptor

MOUSE = "0501 0902 a101"
descriptors = {
    "page behind the usage": "0901 0509 1500 2501 7501 9508 8102",
    "usage of 32 bits": "0509 0b30000100 1500 26ff00 7508 9501 8102",
    "two usages, four fields": "0930 0931 1581 257f 7508 9504 8106",
}
for name, items in descriptors.items():
    data = bytes.fromhex(MOUSE + items + "c0")
    tools = next(iter(ReportDescriptor.from_bytes(list(data)).input_reports.values()))
    print(name)
    print("  hid-tools ", sum(f.size for f in tools), "bits", [f"{f.usage:08x}" for f in tools])
    parser = hid_parser.ReportDescriptor(data)
    usages = [f"page {i.usage.page:x} usage {i.usage.usage:x}" for i in parser.get_input_items()]
    print("  hid-parser", int(parser.get_input_report_size()), "bits", usages)
PROGRAM
venv/bin/python -W ignore read.py | tee seen
cmp seen - <<"SEEN"
page behind the usage
  hid-tools  8 bits ['00090001', '00090001', '00090001', '00090001', '00090001', '00090001', '00090001', '00090001']
  hid-parser 1 bits ['page 1 usage 1']
usage of 32 bits
  hid-tools  8 bits ['00010030']
  hid-parser 8 bits ['page 9 usage 10030']
two usages, four fields
  hid-tools  32 bits ['00010030', '00010031', '00010031', '00010031']
  hid-parser 16 bits ['page 1 usage 30', 'page 1 usage 31']
SEEN
