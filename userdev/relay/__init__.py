"""Between a client and a server of any protocol: sends on what either sends, and shows it, or hands it over first.

One thread and one loop. A protocol is a `Codec`; whoever wants to know what passes is the relay's owner.
"""

from userdev.relay.backlog import Backlog
from userdev.relay.direction import DIRECTIONS, Direction
from userdev.relay.loop import Future, Loop, Task, Timer
from userdev.relay.outlet import Outlet
from userdev.relay.pump import Codec, Pump
from userdev.relay.relay import Relay

__all__ = ["DIRECTIONS", "Backlog", "Codec", "Direction", "Future", "Loop", "Outlet", "Pump", "Relay", "Task", "Timer"]
