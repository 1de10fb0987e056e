#!/bin/sh
# cloud-init gives a guest the routes of its network configuration without their metrics: eni, networkd, sysconfig and
# NetworkManager have none of them.
#
# Guess: `metric` of a route, which version 2 of the format has, is where the format that is made has it, as it is for
# netplan; or a word of what was left out.
# Seen on 2026-11-30, cloud-init 22.4.2 (Debian 22.4.2-1+deb12u4, Python 3.11), its own `devel net-convert`: of two ways
# to one network, with metric 50 and 500, each of the four has both, alike, with status 0 and no word: the way that was
# to be the spare is as good as the first. Issue 4217 of 2023, about networkd, is open.
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
fetch install --yes --download-only --no-install-recommends cloud-init=22.4.2-1+deb12u4
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check PyYAML==6.0.2 Jinja2==3.1.4 configobj==5.0.9 jsonpatch==1.33 \
    jsonschema==4.23.0 oauthlib==3.2.2 requests==2.32.3
cat >network <<"CONFIGURATION"
version: 2
ethernets:
  eth0:
    addresses: [192.168.1.10/24]
    routes:
      - {to: 10.0.0.0/8, via: 192.168.1.1, metric: 50}
      - {to: 10.0.0.0/8, via: 192.168.1.2, metric: 500}
CONFIGURATION
cat >convert.py <<"PROGRAM"
import sys

from cloudinit.cmd.main import main

sys.exit(main())
PROGRAM
for pair in netplan:debian eni:debian networkd:debian sysconfig:rhel network-manager:rhel; do
    renderer=${pair%:*}
    status=0
    PYTHONPATH=unpacked/usr/lib/python3/dist-packages venv/bin/python convert.py devel net-convert --network-data network \
        --kind yaml --directory made.$renderer --distro ${pair#*:} --output-kind $renderer >said 2>&1 || status=$?
    gateways=$(grep -rhoE "192\.168\.1\.[12]\b" made.$renderer | sort -u | wc --lines)
    echo "$renderer: status $status, $gateways gateways, $(grep -rhoE "\b500?\b" made.$renderer | sort -u | wc --lines) metrics"
done | tee seen
cmp seen - <<"SEEN"
netplan: status 0, 2 gateways, 2 metrics
eni: status 0, 2 gateways, 0 metrics
networkd: status 0, 2 gateways, 0 metrics
sysconfig: status 0, 2 gateways, 0 metrics
network-manager: status 0, 2 gateways, 0 metrics
SEEN
