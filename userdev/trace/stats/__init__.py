"""The numbers of a trace: what was asked how often, how long it took, and what is odd about it."""

from userdev.trace.stats.findings import Finding
from userdev.trace.stats.report import Report, Section, report
from userdev.trace.stats.stats import Stats

__all__ = ["Finding", "Report", "Section", "Stats", "report"]
