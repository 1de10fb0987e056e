#!/bin/sh
# ansi2txt leaves a "B" in a guest's log for each `tput sgr0`, and "3h" of what OVMF begins with; ansifilter makes a
# line of the title of a window.
#
# Guess: plain text, as both are for: a control sequence is passed over as a whole, known or not, since ECMA-48 says
# where each ends.
# Seen on 2026-11-30, colorized-logs 2.6 and ansifilter 2.18 (Debian 12): of `ESC ( B`, which terminfo's xterm and
# screen have in sgr0, ansi2txt keeps the B; of `ESC [ = 3 h` the "3h"; of a colour written with colons "5:1m". Its
# manual has "removing all ANSI codes". ansifilter knows these, and shows a title (OSC 0) as a line of its own and of
# a link (OSC 8) its address. A log of which lines are compared or searched has other words in it. ansi2html of the
# same package does as ansi2txt. Not in the issues found by a search.
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
    colorized-logs=2.6-1 ansifilter=2.18+dfsg1-2
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
tool() {
    LD_LIBRARY_PATH=$libraries "$work/unpacked/$@"
}

cat >make.py <<"PROGRAM"
import pathlib

pieces = {
    "charset": "[\x1b[32m OK \x1b(B\x1b[m] started",
    "private": "\x1b[2J\x1b[=3hBdsDxe: loading",
    "colons": "\x1b[38:5:1mfailed\x1b[0m",
    "title": "\x1b]0;root@guest\x07guest login:",
    "link": "\x1b]8;;man:init\x1b\\init\x1b]8;;\x1b\\ ends",
}
for name, text in pieces.items():
    pathlib.Path(name).write_text(text + "\n")
PROGRAM
python3 make.py
for piece in charset private colons title link; do
    echo "$piece"
    tool usr/bin/ansi2txt <$piece | sed "s/^/ ansi2txt   |/"
    tool usr/bin/ansifilter -i $piece | sed "s/^/ ansifilter |/"
done | tee seen
cmp seen - <<"SEEN"
charset
 ansi2txt   |[ OK B] started
 ansifilter |[ OK ] started
private
 ansi2txt   |3hBdsDxe: loading
 ansifilter |BdsDxe: loading
colons
 ansi2txt   |5:1mfailed
 ansifilter |failed
title
 ansi2txt   |guest login:
 ansifilter |0;root@guest
 ansifilter |guest login:
link
 ansi2txt   |init ends
 ansifilter |8;;man:init\init8;;\ ends
SEEN
