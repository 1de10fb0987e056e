#!/bin/sh
# A journal that systemd-journal-remote made of two machines' exports has all entries, but journalctl finds none of them
# with --until, and none with --since.
#
# Guess: --since and --until are a filter: each entry of the time asked for, of either machine, whichever export was
# given first.
# Seen on 2026-11-30, systemd 252 (Debian 252.39-1~deb12u2): entries are kept as they came, first all of one export, then
# all of the other, and sought as if times rose. With the later machine first, --until an hour behind the earlier one's
# ten entries shows none of them, and --since within the later one's shows none either. Status 0, no word; with the
# exports given the other way round both are right. The manual says of several streams that they "will be interleaved in
# the output file".
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
fetch install --yes --download-only --no-install-recommends systemd=252.39-1~deb12u2 systemd-journal-remote=252.39-1~deb12u2
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
export LD_LIBRARY_PATH=$libraries
export_of() { # name, second of its first entry, a digit for its ids
    for number in 0 1 2 3 4 5 6 7 8 9; do
        printf '%s\n' "__REALTIME_TIMESTAMP=$(($2 + number * 60))000000" "__MONOTONIC_TIMESTAMP=$((number * 60 + 1))000000" \
            "_BOOT_ID=$(printf %032d 0 | tr 0 "$3")" "_MACHINE_ID=$(printf %032d 1 | tr 1 "$3")" "PRIORITY=6" \
            "MESSAGE=$1 $number" ""
    done >"$1"
}
begin=1790000000
export_of morning $begin 1
export_of evening $((begin + 36000)) 2
collect() { unpacked/lib/systemd/systemd-journal-remote --output="$1.journal" "$2" "$3" 2>/dev/null; }
collect rising morning evening
collect falling evening morning
for journal in rising falling; do
    show() { unpacked/bin/journalctl --quiet --file $journal.journal --output cat "$@"; }
    echo "$journal: $(show | wc --lines) entries"
    show --until "@$((begin + 3600))" >found || true
    echo "$journal until noon: $(grep -c morning found || true) of the morning, $(grep -c evening found || true) of the evening"
    show --since "@$((begin + 36000 + 300))" >found || true
    echo "$journal since late: $(grep -c morning found || true) of the morning, $(grep -c evening found || true) of the evening"
done | tee seen
cmp seen - <<"SEEN"
rising: 20 entries
rising until noon: 10 of the morning, 0 of the evening
rising since late: 0 of the morning, 5 of the evening
falling: 20 entries
falling until noon: 0 of the morning, 0 of the evening
falling since late: 0 of the morning, 0 of the evening
SEEN
