"""Bundles: a run as a folder that can be sent, read, compared, and done again elsewhere (docs/bundles.md)."""

from vfio_user.bundle.keeping import ALWAYS, AUTO, IN_RESULTS, Keeping, outcome_of
from vfio_user.bundle.model import FORMAT, MANIFEST, Bundle, Outcome, Recipe, Seen, schema
from vfio_user.bundle.of_tests import bundle_of, keeping_pytest, keeping_test, moved
from vfio_user.bundle.packing import USUAL_MIB, pack
from vfio_user.bundle.reading import OpenBundle, is_bundle, open_bundle
from vfio_user.bundle.secrets import SECRET, Secrets

__all__ = [
    "ALWAYS",
    "AUTO",
    "FORMAT",
    "IN_RESULTS",
    "MANIFEST",
    "SECRET",
    "USUAL_MIB",
    "Bundle",
    "Keeping",
    "OpenBundle",
    "Outcome",
    "Recipe",
    "Secrets",
    "Seen",
    "bundle_of",
    "is_bundle",
    "keeping_pytest",
    "keeping_test",
    "moved",
    "open_bundle",
    "outcome_of",
    "pack",
    "schema",
]
