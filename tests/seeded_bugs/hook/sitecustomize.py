"""Found by every Python process whose PYTHONPATH starts with this folder: plants what the environment names."""

import os
import sys

if "VFIO_USER_PLANTED" in os.environ:
    try:
        from tests.seeded_bugs.planting import plant

        plant(os.environ["VFIO_USER_PLANTED"])
    except Exception as error:  # Python would print it and go on: as if the bug were there and harmless
        print(f"planting: {type(error).__name__}: {error}", file=sys.stderr)
        os._exit(70)
