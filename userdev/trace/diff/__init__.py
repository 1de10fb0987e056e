"""What differs between two traces: by what was asked and answered, whenever that was and under whatever id."""

from userdev.trace.diff.compare import Comparison, Difference, compare

__all__ = ["Comparison", "Difference", "compare"]
