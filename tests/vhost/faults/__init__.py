"""Back-ends of ours with one fault each: by the id of the check that it is for."""

from tests.vhost.faults import channel, messages, parts, rings
from tests.vhost.faults.faulty import FAULTS, Fault, Faulty

__all__ = ["FAULTS", "Fault", "Faulty", "channel", "messages", "parts", "rings"]
