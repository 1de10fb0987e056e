#!/bin/sh
# dissect.hypervisor lists a disk of a VMware machine that is not there, puts the disks in the order of their names, and
# finds none in a valid OVF of version 2 or of a collection of machines.
#
# Guess: disks() has the disks of the machine: without what `present = "FALSE"` takes out, in the order of their slots,
# so that the first is the one it boots from; and what it cannot read is an error.
# Seen on 2026-11-30, dissect.hypervisor 3.21 (Python 3.11): a slot of a VMX file counts as a disk when it has a file
# name, and the names are sorted, so that data.vmdk of slot 1 comes before system.vmdk of slot 0. For OVF, disks() looks
# for the namespace of version 1 and for machines directly in the envelope: of DMTF's envelope/2 and of a
# VirtualSystemCollection (a vApp) it yields nothing, and a loop over an export's disks has nothing to do and succeeds.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check dissect.hypervisor==3.21
cat >list.py <<"PROGRAM"
import io

from dissect.hypervisor.descriptor.ovf import OVF
from dissect.hypervisor.descriptor.vmx import VMX

DISKS = "system.vmdk", "data.vmdk", "detached.vmdk"
vmx = 'scsi0.present = "TRUE"\n'
for slot, name in enumerate(DISKS):
    vmx += f'scsi0:{slot}.fileName = "{name}"\nscsi0:{slot}.present = "{"FALSE" if slot == 2 else "TRUE"}"\n'
print("VMX:", VMX.parse(vmx).disks())

CIM = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
MACHINE = """<VirtualSystem ovf:id="vm"><Info/><VirtualHardwareSection><Info/><Item>
<rasd:ElementName>disk</rasd:ElementName><rasd:HostResource>ovf:/disk/one</rasd:HostResource>
<rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>17</rasd:ResourceType>
</Item></VirtualHardwareSection></VirtualSystem>"""


def ovf(version, machines):
    space = f"http://schemas.dmtf.org/ovf/envelope/{version}"
    return f"""<Envelope xmlns="{space}" xmlns:ovf="{space}" xmlns:rasd="{CIM}">
<References><File ovf:id="file" ovf:href="system.vmdk"/></References>
<DiskSection><Info/><Disk ovf:diskId="one" ovf:fileRef="file" ovf:capacity="1"/></DiskSection>{machines}</Envelope>"""


collection = f'<VirtualSystemCollection ovf:id="app"><Info/>{MACHINE}</VirtualSystemCollection>'
print("OVF 1:", list(OVF(io.StringIO(ovf(1, MACHINE))).disks()))
print("OVF 2:", list(OVF(io.StringIO(ovf(2, MACHINE))).disks()))
print("OVF 1, a collection:", list(OVF(io.StringIO(ovf(1, collection))).disks()))
PROGRAM
venv/bin/python list.py | tee seen
cmp seen - <<"SEEN"
VMX: ['data.vmdk', 'detached.vmdk', 'system.vmdk']
OVF 1: ['system.vmdk']
OVF 2: []
OVF 1, a collection: []
SEEN
