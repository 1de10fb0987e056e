"""What is of postcopy, which users without userfaultfd(2) do not have: an ordinary one of most machines."""

from __future__ import annotations

import pytest

from vhost_user.frontend.conformance import CATALOGUE
from vhost_user.memory import userfault

needs_userfaultfd = pytest.mark.skipif(
    not userfault.is_allowed(),
    reason="no userfaultfd that waits for system calls too: it takes CAP_SYS_PTRACE, the right to open /dev/userfaultfd"
    " or vm.unprivileged_userfaultfd=1",
)
NOT_OFFERED = {check.id for check in CATALOGUE if check.group == "postcopy" and not userfault.is_allowed()}
"""Checks that a back-end of this user is not asked, as it does not offer PAGEFAULT."""
