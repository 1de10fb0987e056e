"""A message of vhost-user's on its way through a session."""

from __future__ import annotations

from userdev.interposer import passing
from vhost_user.wire import Message

Passing = passing.Passing[Message]
Stage = passing.Stage[Message]
