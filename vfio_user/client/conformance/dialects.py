"""Dialects that have a rule in common, by name (`vfio_user.wire.dialects`)."""

from __future__ import annotations

CURRENT_FAMILY = frozenset({"current", "region-migration", "current-dma32", "region-migration-dma32"})
DRAFT = frozenset({"draft-v6"})
MESSAGES = frozenset({"current", "current-dma32"})
"""Dialects that migrate by messages."""
REGION = frozenset({"draft-v6", "region-migration", "region-migration-dma32"})
"""Dialects that migrate by the v1 region."""
