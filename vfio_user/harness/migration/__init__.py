"""Live migration of a guest with its vfio-user devices: see coordinator.py."""

from vfio_user.harness.migration.plan import Cancelled, Conductor, Limits, Plan
from vfio_user.harness.migration.qemu_side import Tuning
from vfio_user.harness.migration.report import MigrationCheck, Mode, Phase, PhaseRecord, Report, Verdict

__all__ = [
    "Cancelled",
    "Conductor",
    "Limits",
    "MigrationCheck",
    "Mode",
    "Phase",
    "PhaseRecord",
    "Plan",
    "Report",
    "Tuning",
    "Verdict",
]
