"""A coverage-guided target for atheris: the input's first byte chooses, the rest is what the client sends.

Run by `scripts/fuzz atheris`; arguments go to libFuzzer (`-max_total_time=60`, a corpus directory).
"""

from __future__ import annotations

import logging
import sys

import atheris

with atheris.instrument_imports(include=["vfio_user"]):
    from tests.everything_device import Everything
    from tests.fuzzing import Script, proposal, run_session
    from vfio_user.wire import DIALECTS

_EIO = 5
_DIALECTS = list(DIALECTS.values())


def one_input(data: bytes) -> None:
    """One session: bit 2 of the first byte leaves VERSION to the input, bits 0 and 1 choose the dialect."""
    if not data:
        return
    dialect = _DIALECTS[data[0] & 3]
    device = Everything(ioeventfd=False)  # which would cost a thread for each session
    script = Script(lambda request: request.error(1))
    if not data[0] & 4:
        script.add(proposal(dialect))
    script.add(data[1:], cuts=range(0, len(data), 1 + data[0] // 8))
    run_session(device, script, dialect)
    device.close()
    if any(reply.errno == _EIO for reply in script.replies):
        raise AssertionError("a defect of the server was answered with EIO")


def main() -> None:
    logging.disable(logging.CRITICAL)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
