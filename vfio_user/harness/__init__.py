"""Real guests in a real QEMU: what a test author imports, `from vfio_user.harness import Lab` (docs/testing.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = [
    "AT_UNPLUG",
    "CELL_PARAMETER",
    "EXERCISES",
    "INDEX",
    "RECORD",
    "RESULTS_VARIABLE",
    "SUBJECTS",
    "TEST_SECONDS",
    "XFAIL",
    "XPASS",
    "Assignment",
    "Attachment",
    "BootOptions",
    "BootedGuest",
    "Cancelled",
    "Cell",
    "Child",
    "Conductor",
    "Deadline",
    "DebianArchive",
    "Device",
    "DeviceServer",
    "EventLog",
    "Exercise",
    "Family",
    "Guest",
    "GuestCrash",
    "GuestFailure",
    "GuestLost",
    "GuestSpec",
    "HardwareOptions",
    "Host",
    "Interpose",
    "Interposition",
    "Job",
    "KnownIssue",
    "Lab",
    "Limits",
    "LocalHost",
    "Machine",
    "MachineConfig",
    "MachineError",
    "Mode",
    "NamespaceHost",
    "Pair",
    "Phase",
    "Plan",
    "Plugged",
    "Property",
    "Qemu",
    "QmpError",
    "QmpLost",
    "QmpTimeout",
    "Report",
    "Result",
    "Scratch",
    "ServerError",
    "ServerFailure",
    "Site",
    "SocketChardev",
    "SshHost",
    "Trial",
    "Tuning",
    "Verdict",
    "Workload",
    "another_machine",
    "attachment_of",
    "c_compiler",
    "ensure_qemu",
    "exercise",
    "inside_qemu",
    "install_peer",
    "installed_qemu",
    "judge",
    "known_issue",
    "manifest",
    "patience",
    "reference_program",
    "report_of",
    "results_folder",
    "results_root",
    "slot_address",
    "succeed",
    "trial",
    "two_hosts",
    "write_boot_disk",
]

if TYPE_CHECKING:
    from userdev.process import Child, Deadline
    from vfio_user.harness.artifacts import RESULTS_VARIABLE, results_folder, results_root
    from vfio_user.harness.attachment import Attachment, SocketChardev
    from vfio_user.harness.boot_disk import write_boot_disk
    from vfio_user.harness.booted_guest import BootedGuest, Plugged, attachment_of
    from vfio_user.harness.cell import CELL_PARAMETER, Cell
    from vfio_user.harness.command_line import HardwareOptions, MachineConfig, slot_address
    from vfio_user.harness.debian import DebianArchive
    from vfio_user.harness.device import Device
    from vfio_user.harness.exercises import EXERCISES, Exercise, exercise, report_of, succeed
    from vfio_user.harness.family import Family, Property, inside_qemu
    from vfio_user.harness.guest import Guest, GuestFailure, GuestLost, Job, Result
    from vfio_user.harness.guest_spec import BootOptions, GuestSpec
    from vfio_user.harness.hosts import Host, LocalHost, NamespaceHost, Pair, SshHost, two_hosts
    from vfio_user.harness.hosts.other_machine import another_machine
    from vfio_user.harness.interposition import Interpose, Interposition
    from vfio_user.harness.known_issues import XFAIL, XPASS, KnownIssue, known_issue
    from vfio_user.harness.lab import Lab
    from vfio_user.harness.libvfio_user import reference_program
    from vfio_user.harness.machine import Machine, MachineError
    from vfio_user.harness.migration import Cancelled, Conductor, Limits, Mode, Phase, Plan, Report, Tuning, Verdict
    from vfio_user.harness.migration.workload import SUBJECTS, Assignment, Workload, judge
    from vfio_user.harness.mishaps import GuestCrash
    from vfio_user.harness.qemu import Qemu, ensure_qemu, installed_qemu, manifest
    from vfio_user.harness.qemu_guards import AT_UNPLUG
    from vfio_user.harness.qmp import EventLog, QmpError, QmpLost, QmpTimeout
    from vfio_user.harness.scratch import Scratch
    from vfio_user.harness.server import DeviceServer, ServerError, ServerFailure
    from vfio_user.harness.site import Site
    from vfio_user.harness.timeouts import patience
    from vfio_user.harness.toolchain import c_compiler
    from vfio_user.harness.verdicts import TEST_SECONDS, Trial, trial
    from vfio_user.harness.vhost_user_peers import install_peer
    from vfio_user.page.names import INDEX, RECORD
else:
    # Hidden from type checkers, for which every name would be right. Who needs one module waits for no other (PEP 562).
    import importlib

    _NAMES = {
        "userdev.process": ("Child", "Deadline"),
        "vfio_user.harness.artifacts": ("RESULTS_VARIABLE", "results_folder", "results_root"),
        "vfio_user.harness.attachment": ("Attachment", "SocketChardev"),
        "vfio_user.harness.boot_disk": ("write_boot_disk",),
        "vfio_user.harness.booted_guest": ("BootedGuest", "Plugged", "attachment_of"),
        "vfio_user.harness.cell": ("CELL_PARAMETER", "Cell"),
        "vfio_user.harness.command_line": ("HardwareOptions", "MachineConfig", "slot_address"),
        "vfio_user.harness.debian": ("DebianArchive",),
        "vfio_user.harness.device": ("Device",),
        "vfio_user.harness.exercises": ("EXERCISES", "Exercise", "exercise", "report_of", "succeed"),
        "vfio_user.harness.family": ("Family", "Property", "inside_qemu"),
        "vfio_user.harness.guest": ("Guest", "GuestFailure", "GuestLost", "Job", "Result"),
        "vfio_user.harness.guest_spec": ("BootOptions", "GuestSpec"),
        "vfio_user.harness.hosts": ("Host", "LocalHost", "NamespaceHost", "Pair", "SshHost", "two_hosts"),
        "vfio_user.harness.hosts.other_machine": ("another_machine",),
        "vfio_user.harness.interposition": ("Interpose", "Interposition"),
        "vfio_user.harness.known_issues": ("XFAIL", "XPASS", "KnownIssue", "known_issue"),
        "vfio_user.harness.lab": ("Lab",),
        "vfio_user.harness.libvfio_user": ("reference_program",),
        "vfio_user.harness.machine": ("Machine", "MachineError"),
        "vfio_user.harness.migration": (
            "Cancelled",
            "Conductor",
            "Limits",
            "Mode",
            "Phase",
            "Plan",
            "Report",
            "Tuning",
            "Verdict",
        ),
        "vfio_user.harness.migration.workload": ("SUBJECTS", "Assignment", "Workload", "judge"),
        "vfio_user.harness.mishaps": ("GuestCrash",),
        "vfio_user.harness.timeouts": ("patience",),
        "vfio_user.harness.qemu": ("Qemu", "ensure_qemu", "installed_qemu", "manifest"),
        "vfio_user.harness.qemu_guards": ("AT_UNPLUG",),
        "vfio_user.harness.qmp": ("EventLog", "QmpError", "QmpLost", "QmpTimeout"),
        "vfio_user.harness.scratch": ("Scratch",),
        "vfio_user.harness.server": ("DeviceServer", "ServerError", "ServerFailure"),
        "vfio_user.harness.site": ("Site",),
        "vfio_user.harness.toolchain": ("c_compiler",),
        "vfio_user.harness.verdicts": ("TEST_SECONDS", "Trial", "trial"),
        "vfio_user.harness.vhost_user_peers": ("install_peer",),
        "vfio_user.page.names": ("INDEX", "RECORD"),
    }
    _HOMES = {name: home for home, names in _NAMES.items() for name in names}

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return value

    def __dir__():
        return __all__
