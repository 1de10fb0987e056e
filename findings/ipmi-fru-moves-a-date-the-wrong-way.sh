#!/bin/sh
# ipmi-fru shows a board that was made at midnight an hour before that in Berlin and five hours after it in New York.
#
# Guess: the stored time as it is, whatever TZ, for "by IPMI definition, all IPMI times and timestamps are stored in
# localtime" (ipmi-fru(8)); and with --utc-to-localtime, an hour more in Berlin.
# Seen on 2026-11-30, freeipmi 1.6.10 (Debian 1.6.10-1+b1), python-ipmi 0.6.1: the offset of the zone is taken away
# from what is stored, so that the day may be another one, and with --utc-to-localtime the stored time is shown as it
# is. python-ipmi gives what is stored in every zone. Only a machine in UTC shows no difference. The manual has no
# word of it, and no issue was found in a search.
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
fetch install --yes --download-only --no-install-recommends \
    freeipmi-tools=1.6.10-1+b1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check python-ipmi==0.6.1
tool() {
    LD_LIBRARY_PATH=$libraries "$work/unpacked/$@"
}

cat >write.py <<"PROGRAM"
import datetime
import pathlib


def area(body):
    body += b"\xc1"
    whole = bytes([1, (len(body) + 10) // 8]) + body
    whole += bytes(-(len(whole) + 1) % 8)
    return whole + bytes([-sum(whole) & 255])


def inventory(serial, kind, minutes=0):
    """A whole inventory with a board of five fields, by the specification; the serial number is of the kind asked for."""
    head = bytes([1, 0, 0, 1, 0, 0, 0])
    fields = [(3, b"ACME"), (3, b"BOARD"), (kind, serial), (3, b"PART"), (3, b"file")]
    written = b"".join(bytes([each << 6 | len(text)]) + text for each, text in fields)
    return head + bytes([-sum(head) & 255]) + area(bytes([25]) + minutes.to_bytes(3, "little") + written)


since = datetime.datetime(2026, 1, 1) - datetime.datetime(1996, 1, 1)
pathlib.Path("made.fru").write_bytes(inventory(b"12", 3, since.days * 24 * 60))
PROGRAM
python3 write.py
for zone in UTC0 Berlin-1 NewYork+5; do
    for option in "" --utc-to-localtime; do
        # shellcheck disable=SC2086
        echo "$zone $option: $(TZ=$zone tool usr/sbin/ipmi-fru $option --fru-file=made.fru | sed -n "s/.*Date.Time: //p")"
    done
    echo "$zone pyipmi: $(TZ=$zone venv/bin/python -c "
import pyipmi.fru
print(pyipmi.fru.get_fru_inventory_from_file('made.fru').board_info_area.mfg_date)")"
done | tee seen
cmp seen - <<"SEEN"
UTC0 : 01/01/26 - 00:00:00
UTC0 --utc-to-localtime: 01/01/26 - 00:00:00
UTC0 pyipmi: 2026-01-01 00:00:00
Berlin-1 : 12/31/25 - 23:00:00
Berlin-1 --utc-to-localtime: 01/01/26 - 00:00:00
Berlin-1 pyipmi: 2026-01-01 00:00:00
NewYork+5 : 01/01/26 - 05:00:00
NewYork+5 --utc-to-localtime: 01/01/26 - 00:00:00
NewYork+5 pyipmi: 2026-01-01 00:00:00
SEEN
