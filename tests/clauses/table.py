"""Whatever vfio-user's conformance checks require, and a server that is found by that: a line each."""

from __future__ import annotations

import errno
from dataclasses import replace

from tests.clauses import acts, devices, faults, sessions
from tests.clauses.bounds import BOUND_CLAUSES
from tests.clauses.clause import Clause
from tests.clauses.faults import Behind, BehindRefusal, Changes, Gives, Hears, Keeps, Refuses, Says, Sends, Takes
from tests.clauses.requests import (
    again,
    at,
    begins,
    counting,
    ends_with,
    front,
    irqs,
    longer,
    never_forgotten,
    of_feature,
    of_region,
    of_the_first,
    one_less,
    one_more_at_the_end,
    pending_at_the_end,
    sized,
    state_set_to,
    u32,
    u64,
    unmaps,
    v1,
)
from tests.config_space_faults import BROKEN
from tests.conformance_target import Fault
from userdev_servers.edu import Edu
from vfio_user.client.conformance.dma import BASE, SIZE
from vfio_user.wire import DRAFT_V6, REGION_MIGRATION, Command
from vfio_user.wire.constants import Feature, FeatureFlags, IrqSetFlags, MigrationState

C, S = Command, MigrationState
V1, DRAFT = REGION_MIGRATION, DRAFT_V6
GET, PROBE = FeatureFlags.GET, FeatureFlags.PROBE
NONE, BOOL, EVENTFD = IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_BOOL, IrqSetFlags.DATA_EVENTFD
TRIGGER = IrqSetFlags.TRIGGER
MIGRATION, STATE, REPORT = Feature.MIGRATION, Feature.MIG_DEVICE_STATE, Feature.DMA_LOGGING_REPORT
REPORTS = of_feature(REPORT)
WIDE = unmaps(BASE - 0x1000, SIZE + 0x2000)
ASKED_CUT, ASKED_LESS, ASKED_MORE = begins(32), begins(79), begins(180)
"""Requests for the region that needs 80 bytes: its structure, a byte too few, and plenty."""
NO_JSON = sessions.takes_first(acts.makes_unlike_version)
ANY_VERSION = sessions.takes_first(acts.makes_version)

VERSION_CLAUSES = [
    Clause("version/agreed", "minor 1 answers minor 0", faults.SaysVersion(b"{}\0", minor=1)),
    Clause("version/agreed", "major 1 answers major 0", faults.SaysVersion(b"{}\0", major=1)),
    Clause("version/agreed", "closes the connection after", sessions.HangsUp),
    Clause("version/agreed", "a proposal of 0.0 failed with EINVAL", NO_JSON),
    Clause("version/reply-has-json", "the reply has no JSON", faults.SaysVersion(b"")),
    Clause("version/reply-is-json", "does not end with a NUL", faults.SaysVersion(b"{}")),
    Clause("version/reply-is-json", "the reply's JSON is malformed", faults.SaysVersion(b"{\0")),
    Clause("version/reply-is-json", "capabilities are no object", faults.SaysVersion(b"[]\0")),
    Clause(
        "version/no-unasked-modes",
        "has write_multiple, which nobody",
        faults.SaysVersion(b'{"capabilities":{"write_multiple":true}}\0'),
    ),
    Clause(
        "version/no-unasked-modes",
        "has twin_socket, which nobody",
        faults.SaysVersion(b'{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}\0'),
    ),
    Clause("version/fits-qemu", "and QEMU room for", faults.SaysVersion(b'{"x":"' + b"x" * 400 + b'"}\0')),
    Clause(
        "version/limits-qemu-takes", "max_msg_fds is 17", faults.SaysVersion(b'{"capabilities":{"max_msg_fds":17}}\0')
    ),
    Clause("version/limits-qemu-takes", "pgsizes is 512", faults.SaysVersion(b'{"capabilities":{"pgsizes":512}}\0')),
    Clause("version/no-unasked-fds", "1 descriptors came", faults.SaysVersion(b"{}\0", fds=1)),
    Clause("version/no-unasked-fds", "after a proposal of {}", sessions.HangsUp),
    Clause("version/malformed-json", "succeeded instead of failing", ANY_VERSION),
    Clause("version/malformed-json", "stays open after malformed JSON", sessions.StaysOpen),
    Clause("version/malformed-json", "the next client is not served", sessions.serves(1)),
    Clause("version/short-payload", "VERSION with 0 bytes of payload succeeded", ANY_VERSION),
    Clause("version/short-payload", "stays open after VERSION with 0 bytes", sessions.StaysOpen),
    Clause("version/short-payload", "the next client is not served", sessions.serves(2)),
    Clause("version/must-be-first", "GET_INFO before VERSION succeeded", ANY_VERSION),
    Clause("version/must-be-first", "stays open after GET_INFO", sessions.StaysOpen),
    Clause("version/must-be-first", "the next client is not served", sessions.serves(1)),
    Clause("version/reply-first", "stays open after a reply", sessions.StaysOpen),
    Clause("version/reply-first", "the next client is not served", sessions.serves(1)),
    Clause("version/oversize", "stays open after a size of 4 GiB", sessions.StaysOpen),
    Clause("version/oversize", "the next client is not served", sessions.serves(1)),
    Clause("version/again", "a second VERSION succeeded", Takes(C.VERSION)),
    Clause("version/vanishing-client", "the next client is not served", sessions.serves(6)),
]

MESSAGE_CLAUSES = [
    Clause("header/command-echoed", "answered with command", Sends(lambda it: replace(it, command=it.command ^ 256))),
    Clause("header/flags-of-replies", "a good reply has flags 0x41", Sends(lambda reply: replace(reply, flags=0x41))),
    Clause("header/flags-of-replies", "a good reply has errno 5", Sends(lambda reply: replace(reply, errno=5))),
    Clause("header/flags-of-replies", "past the end has flags 0x61", sessions.MarksItsRefusals),
    Clause("header/flags-of-replies", "and no Error bit (0x20)", sessions.RefusesWithoutTheBit),
    Clause("header/errno-of-errors", "past the end has errno 5000", faults.RefusesWith(5000)),
    Clause("header/errno-of-errors", "past the end has errno 0", sessions.NamesNoErrno),
    Clause("header/errors-have-no-payload", "answers REGION_READ has 20 bytes", sessions.ExplainsItsRefusals),
    Clause("header/same-id-twice", "a read failed with EIO", Refuses(C.REGION_READ)),
    Clause("header/size-below-16", "a message of size 0 failed with EIO", sessions.FramesWrongly),
    Clause("header/size-below-16", "the next client is not served", sessions.serves(3)),
    Clause("header/no-payload", "DMA_MAP without payload succeeded", Takes(C.DMA_MAP)),
    Clause("header/type-reply", "a message of type reply failed with EIO", sessions.AnswersReplies),
    Clause("header/type-unknown", "a message of type 2 succeeded", sessions.TakesAnyCommand),
    Clause("header/unknown-command", "command 0 succeeded", sessions.TakesAnyCommand),
    Clause("header/servers-commands", "DMA_READ from a client succeeded", sessions.TakesAnyCommand),
    Clause("header/reserved-bits", "a read with flags 0x20 failed", sessions.minds(flags=True)),
    Clause("header/reserved-bits", "a read with an errno in its header failed", sessions.minds(flags=False)),
    Clause("order/pipelined", "a pipelined read failed", Refuses(C.REGION_READ)),
    Clause("order/many-in-one-send", "a read among many failed", Refuses(C.REGION_READ)),
    Clause("order/byte-by-byte", "a read in pieces failed", Refuses(C.REGION_READ)),
    Clause("order/byte-by-byte", "a read in pieces failed with EINVAL", sessions.TakesBodiesInOneReceive),
    Clause("order/posted-write-comes-first", "after a posted write", Keeps(C.REGION_WRITE, answer=front(16))),
    Clause("order/posted-writes-in-order", "of aa at last", faults.LastFirst()),
    Clause("order/posted-write-is-silent", "a posted write was answered", faults.AnswersPosted(C.REGION_WRITE)),
    Clause("order/no-reply-on-any-command", "with No_reply was answered", faults.AnswersPosted(C.GET_INFO)),
    Clause("order/error-does-not-stop", "with failures [False, False, False]", Takes(C.REGION_READ)),
    Clause("order/half-a-message", "the next client is not served", sessions.serves(5)),
]

DESCRIPTION_CLAUSES = [
    Clause("info/describes", "GET_INFO failed with EIO", Refuses(C.GET_INFO)),
    Clause("info/describes", "bytes instead of 32", Says(C.GET_INFO, longer)),
    Clause("info/describes", "argsz is 17 instead of 16", Says(C.GET_INFO, u32(0, 17))),
    Clause("info/describes", "the PCI flag is not set", Says(C.GET_INFO, u32(4, 0))),
    Clause("info/describes", "3 regions: QEMU takes", Says(C.GET_INFO, u32(8, 3))),
    Clause("info/describes", "2 interrupt types: QEMU takes", Says(C.GET_INFO, u32(12, 2))),
    Clause("region_read/reply", "and the device has 7 regions", Says(C.GET_INFO, u32(8, 7))),
    Clause("config/pin-has-a-vector", "is needed, and the device has 0", Says(C.GET_INFO, u32(12, 0))),
    Clause("info/longer-request", "a GET_INFO of 36 bytes failed", Refuses(C.GET_INFO)),
    Clause("info/longer-request", "bytes instead of 32", Says(C.GET_INFO, longer)),
    Clause("region_info/describes-every-region", "says that it is region 0", Says(C.GET_REGION_INFO, u32(8, 0))),
    Clause("region_info/describes-every-region", "has flags 0x1", Says(C.GET_REGION_INFO, u32(4, 1), of_region(7))),
    Clause("region_info/describes-every-region", "has 512 bytes", Says(C.GET_REGION_INFO, u32(16, 512), of_region(7))),
    Clause("region_info/areas-are-pages", "0x200 of its desc", BROKEN["a mapping that no kernel makes"].fault),
    Clause("region_info/areas-are-pages", "area 0x1000+0x123", Says(C.GET_REGION_INFO, u64(56, 0x123), of_region(2))),
    Clause("region_info/descriptor-maps", "without a descriptor", Gives(C.GET_REGION_INFO, lambda _: [], of_region(2))),
    Clause("region_info/descriptor-maps", "cannot be mapped", Says(C.GET_REGION_INFO, u64(56, 1 << 20), of_region(2))),
    Clause("region_info/two-steps", "argsz 79 failed", Refuses(C.GET_REGION_INFO, ASKED_LESS)),
    Clause("region_info/two-steps", "argsz 32 is answered with 36 bytes", Says(C.GET_REGION_INFO, longer, ASKED_CUT)),
    Clause("region_info/two-steps", "79 is answered with argsz 99", Says(C.GET_REGION_INFO, u32(0, 99), ASKED_LESS)),
    Clause("region_info/two-steps", "with the CAPS flag", Says(C.GET_REGION_INFO, u32(4, 15), ASKED_CUT)),
    Clause("region_info/two-steps", "came with a descriptor", Gives(C.GET_REGION_INFO, acts.own_file, ASKED_LESS)),
    Clause("region_info/complete-with-room", "argsz 180 failed", Refuses(C.GET_REGION_INFO, ASKED_MORE)),
    Clause("region_info/complete-with-room", "bytes, not 80", Says(C.GET_REGION_INFO, longer, ASKED_MORE)),
    Clause("region_info/complete-with-room", "the CAPS flag is not", Says(C.GET_REGION_INFO, u32(4, 7), ASKED_MORE)),
    Clause("region_info/always-complete", "with argsz 0 failed", Refuses(C.GET_REGION_INFO, begins(0)), DRAFT),
    Clause("region_info/always-complete", "was cut", Says(C.GET_REGION_INFO, front(32), begins(0)), DRAFT),
    Clause("region_info/capability-versions", "argsz 80 failed", Refuses(C.GET_REGION_INFO, again(begins(80)))),
    Clause(
        "region_info/capability-versions",
        "capability 1 has version 2",
        Says(C.GET_REGION_INFO, u32(32, 1 | 2 << 16), begins(80)),
    ),
    Clause("io_fds/reply", "argsz 1048576 failed", Refuses(C.GET_REGION_IO_FDS, begins(1 << 20))),
    Clause("io_fds/reply", "region 0 is answered with (64, 1", Says(C.GET_REGION_IO_FDS, u32(4, 1))),
    Clause("io_fds/reply", "region 2 is answered with (16, 0, 0", Says(C.GET_REGION_IO_FDS, u32(8, 0))),
    Clause("io_fds/reply", "64 bytes with argsz 17", Says(C.GET_REGION_IO_FDS, u32(0, 17))),
    Clause("io_fds/reply", "9 sub-regions in 48 bytes", Says(C.GET_REGION_IO_FDS, u32(12, 9))),
    Clause("io_fds/two-steps", "a sub-region 0x100000000", Says(C.GET_REGION_IO_FDS, u64(16, 1 << 32))),
    Clause("irq_info/describes-every-type", "says that it is type 0", Says(C.GET_IRQ_INFO, u32(8, 0))),
    Clause("irq_info/describes-every-type", "has argsz 17", Says(C.GET_IRQ_INFO, u32(0, 17))),
    Clause("irq_info/describes-every-type", "cannot be delivered by eventfd", Says(C.GET_IRQ_INFO, u32(4, 0))),
    Clause("config/io-bar-size", "has 512 bytes", BROKEN["an I/O BAR that is too large"].fault),
    Clause("config/decodes-its-bars", "decoding stays off", BROKEN["ports that cannot be turned on"].fault),
    Clause("config/pin-has-a-vector", "INTx has 0 vectors", BROKEN["a pin without a line"].fault),
    Clause("config/intx-disable", "cannot be set", BROKEN["a line that cannot be masked"].fault),
    Clause("config/intx-disable", "cannot be cleared", BROKEN["a line that stays masked"].fault),
    Clause("config/no-interrupt-status", "no interrupt pin", BROKEN["a line raised by who has none"].fault),
]

ACCESS_CLAUSES = [
    Clause("region_read/reply", "a read of 1 bytes failed", Refuses(C.REGION_READ)),
    Clause("region_read/reply", "is answered with (1, ", Says(C.REGION_READ, u32(0, 1))),
    Clause("region_read/reply", "REGION_READ of 1 byte is answered with count 1 and 5", Says(C.REGION_READ, longer)),
    Clause("region_read/pieces-agree", "in pieces of 1 bytes", Says(C.REGION_READ, ends_with(b"\x99"), at(9, 1))),
    Clause("region_read/count-0", "a read of 0 bytes failed", Refuses(C.REGION_READ)),
    Clause("region_read/at-the-end", "an offset at the end succeeded", Takes(C.REGION_READ)),
    Clause("region_read/at-the-end", "failed with EXDEV", faults.RefusesWith(errno.EXDEV)),
    Clause("region_read/at-the-end", "still changed config space", Changes(4)),
    Clause("region_read/at-the-end", "still changed config space", Changes(0x3C)),
    Clause("region_write/reply", "a write of the interrupt line failed", Refuses(C.REGION_WRITE)),
    Clause("region_write/reply", "bytes instead of 32", Says(C.REGION_WRITE, longer)),
    Clause("region_write/reply", "the reply says offset 0x1", Says(C.REGION_WRITE, u32(0, 1))),
    Clause("region_write/reply", "has count 7", Says(C.REGION_WRITE, u32(12, 7))),
    Clause("region_write/reply", "has count 1", Says(C.REGION_WRITE, u32(12, 1)), DRAFT),
    Clause("region_write/stays", "the interrupt line reads", Keeps(C.REGION_WRITE, answer=front(16))),
    Clause("region_write/read-only", "the ids are", faults.TakesItsIds()),
    Clause("region_write/bar-sizing", "BAR0 sizes to 0x0", Says(C.REGION_READ, u32(16, 0), at(0x10))),
    Clause("region_write/count-0", "a write of 0 bytes failed", Refuses(C.REGION_WRITE)),
    Clause("region_write/over-the-end", "has written 33", BehindRefusal(C.REGION_WRITE, acts.writes_the_line)),
    Clause("write_multi/in-order", "3 writes are answered with 2", Says(C.REGION_WRITE_MULTI, u32(0, 2))),
    Clause("write_multi/in-order", "after writes of 01, 02, 03", Keeps(C.REGION_WRITE_MULTI, answer=front(8))),
    Clause("reset/succeeds", "DEVICE_RESET failed", Refuses(C.DEVICE_RESET)),
    Clause("reset/succeeds", "bytes instead of 16", Says(C.DEVICE_RESET, longer)),
    Clause("reset/succeeds", "describes itself differently", faults.ForgetsItsPlace()),
    Clause("reset/keeps-irqs", "is not fired after it", Behind(C.DEVICE_RESET, acts.cuts_all)),
    Clause("reset/surplus-ignored", "with a payload failed", Refuses(C.DEVICE_RESET, sized(16))),
    Clause("set_irqs/trigger", "was fired 0 times in place of 1", Keeps(C.SET_IRQS, irqs(NONE | TRIGGER, 1))),
    Clause("set_irqs/trigger-range", "fire vector 1 alone", Behind(C.SET_IRQS, acts.fires_the_whole_index)),
    Clause("set_irqs/trigger-bool", "fire vector 1 alone", Behind(C.SET_IRQS, acts.fires_the_whole_index)),
    Clause("set_irqs/reply-is-header", "TRIGGER with NONE failed", Refuses(C.SET_IRQS)),
    Clause("set_irqs/reply-is-header", "instead of 16", Says(C.SET_IRQS, longer)),
    Clause("set_irqs/eventfd-range", "did not take the place", Keeps(C.SET_IRQS, irqs(EVENTFD | TRIGGER, 1))),
    Clause(
        "set_irqs/eventfd-range", "did not take the place", Hears(C.SET_IRQS, u32(12, 0), irqs(EVENTFD | TRIGGER, 1))
    ),
    Clause("set_irqs/disable", "after its index was disabled", Keeps(C.SET_IRQS, irqs(NONE | TRIGGER, 0))),
    Clause(
        "set_irqs/disable", "after its index was disabled", Hears(C.SET_IRQS, of_the_first, irqs(NONE | TRIGGER, 0))
    ),
    Clause("set_irqs/detach-range", "did not take it alone", Keeps(C.SET_IRQS, irqs(EVENTFD | TRIGGER, 1))),
    Clause("set_irqs/detach-range", "did not take it alone", Hears(C.SET_IRQS, u32(16, 2), irqs(EVENTFD | TRIGGER, 1))),
    Clause("set_irqs/detach", "after it was taken away", Keeps(C.SET_IRQS, again(irqs(EVENTFD | TRIGGER, 1)))),
    Clause("set_irqs/replace", "not the new eventfd", Keeps(C.SET_IRQS, again(irqs(EVENTFD | TRIGGER, 1)))),
    Clause("set_irqs/behind-others", "what comes together failed", Refuses(C.REGION_READ)),
    Clause("set_irqs/behind-others", "is not its own: it was fired 0 times", sessions.GivesDescriptorsToTheFirst),
    Clause("set_irqs/all-vectors", "not every vector fired", Keeps(C.SET_IRQS, irqs(NONE | TRIGGER, 8))),
    Clause("set_irqs/no-action", "fired an interrupt", BehindRefusal(C.SET_IRQS, acts.triggers)),
    Clause(
        "set_irqs/no-action",
        "another: it was fired 0 times",
        BehindRefusal(C.SET_IRQS, acts.cuts_the_first),
    ),
    Clause("set_irqs/no-action", "still changed config space", Changes(4)),
]

MEMORY_CLAUSES = [
    Clause("dma_map/impossible", "nothing of it is looked at", Takes(C.DMA_MAP, sized(32))),
    Clause("dma_map/table-impossible", "nothing of it is looked at", Takes(C.DMA_MAP, sized(32)), DRAFT),
    Clause("dma_map/map-and-unmap", "DMA_UNMAP is answered and not done", Keeps(C.DMA_UNMAP, sized(24), front(24))),
    Clause(
        "dma_map/map-and-unmap",
        "with EIO (Input/output error), of a range that it has unmapped, as it said",
        Refuses(C.DMA_MAP, again(sized(32))),
    ),
    Clause("dma_map/unmap-unknown", "what was never mapped succeeded", Takes(C.DMA_UNMAP)),
    Clause("dma_map/reply-is-header", "DMA_MAP failed", Refuses(C.DMA_MAP, sized(32))),
    Clause("dma_map/reply-is-header", "instead of 16", Says(C.DMA_MAP, longer)),
    Clause("dma_map/identical", "DMA_MAP failed", Refuses(C.DMA_MAP, sized(32))),
    Clause("dma_map/identical", "the same map again failed", Refuses(C.DMA_MAP, again(sized(32)))),
    Clause("dma_map/identical", "unmapping it failed", Refuses(C.DMA_UNMAP)),
    Clause("dma_map/identical", "unmapping it a second time succeeded", Takes(C.DMA_UNMAP)),
    Clause("dma_map/surplus-fds", "with three descriptors failed", Refuses(C.DMA_MAP, sized(32))),
    Clause("dma_map/fd-that-cannot-map", "mapping a pipe succeeded", Takes(C.DMA_MAP, sized(32))),
    Clause("dma_map/fd-that-cannot-map", "unmapping what was refused succeeded", faults.MapsWhatItRefuses()),
    Clause("dma_map/argsz-zero", "still changed config space", Changes(4)),
    Clause("dma_map/argsz-zero", "unmapping the range that was mapped", BehindRefusal(C.DMA_MAP, acts.unmaps_all)),
    Clause("dma_map/table-all-or-nothing", "second entry overlaps succeeded", Takes(C.DMA_MAP, sized(64)), DRAFT),
    Clause(
        "dma_map/table-all-or-nothing", "its first entry succ", BehindRefusal(C.DMA_MAP, acts.maps_the_first), DRAFT
    ),
    Clause("dma_unmap/reply-echoes", "DMA_UNMAP with argsz 24 failed", Refuses(C.DMA_UNMAP)),
    Clause("dma_unmap/reply-echoes", "is not the request's structure", Says(C.DMA_UNMAP, u32(4, 1))),
    Clause("dma_unmap/all", "unmapping after ALL succeeded", Takes(C.DMA_UNMAP)),
    Clause("dma_unmap/twice", "unmapping a second time succeeded", Takes(C.DMA_UNMAP)),
    Clause("dma_unmap/around", "a range around a mapped one failed with EIO", Refuses(C.DMA_UNMAP, WIDE)),
    Clause(
        "dma_unmap/around", "unmapping the range itself failed", Behind(C.DMA_UNMAP, acts.refuses_all_the_same, WIDE)
    ),
    Clause("dma_unmap/around", "a wider range has unmapped succ", Keeps(C.DMA_UNMAP, WIDE, lambda it: it)),
    Clause("device_dma/registers", "reads 0x0 after", Says(C.REGION_READ, u64(16, 0), at(0x80, 8, 0)), device=Edu),
    Clause("device_dma/by-message", "is still busy", Fault(), device=devices.Busy),
    Clause("device_dma/by-message", "is not what was there", Fault(), device=devices.Corrupting),
    Clause("device_dma/by-message", "in front of its destination", Fault(), device=devices.Early),
    Clause("device_dma/by-message", "behind its destination", Fault(), device=devices.Late),
    Clause("device_dma/by-message", "no DMA_READ came", Fault(), device=devices.Knowing),
    Clause("device_dma/by-mapping", "that can be mapped", faults.DropsDescriptors(C.DMA_MAP), device=Edu),
    Clause("device_dma/read-only", "may only be read was written", faults.MapsWritable(), device=Edu),
    Clause("device_dma/refused", "no DMA_WRITE came", Keeps(C.DMA_MAP, sized(32)), device=Edu),
    Clause("device_dma/unmapped", "for memory that was unmapped", Keeps(C.DMA_UNMAP, sized(24), front(24)), device=Edu),
    Clause("device_dma/unmapped", "was unmapped was written", faults.KeepsMappings(), device=Edu),
    Clause(
        "device_dma/logged", "a page was only read", Says(C.DEVICE_FEATURE, ends_with(b"\xff"), REPORTS), device=Edu
    ),
    Clause("device_dma/logged", "written, and []", Says(C.DEVICE_FEATURE, ends_with(bytes(8)), REPORTS), device=Edu),
    Clause("device_dma/logged", "reported again", Says(C.DEVICE_FEATURE, never_forgotten(), REPORTS), device=Edu),
    Clause("dirty_logging/clean-at-first", "are dirty", Says(C.DEVICE_FEATURE, ends_with(b"\xff"), of_feature(REPORT))),
    Clause("dirty_logging/start-twice", "with another page size succeeded", Takes(C.DEVICE_FEATURE)),
    Clause("dirty_logging/unmap-with-bitmap", "pages are dirty", Says(C.DMA_UNMAP, ends_with(b"\xff"))),
    Clause("dirty_logging/off", "while nothing is logged succeeded", Takes(C.DEVICE_FEATURE)),
    Clause("dirty_pages/clean-at-first", "8 pages are dirty", Says(C.DIRTY_PAGES, ends_with(b"\xff")), V1),
    Clause("dirty_pages/clean-at-first", "pages are dirty", Says(C.DMA_UNMAP, ends_with(b"\xff")), V1),
    Clause("dirty_pages/off", "while nothing is logged succeeded", Takes(C.DIRTY_PAGES), V1),
]

MIGRATION_CLAUSES = [
    Clause("feature/none-without-migration", "PROBE of MIG_DEVICE_STATE failed with EIO", faults.HasNoMigration()),
    Clause("feature/probe", "PROBE with flags", Refuses(C.DEVICE_FEATURE, of_feature(STATE, PROBE))),
    Clause("feature/probe", "is answered with something else", Says(C.DEVICE_FEATURE, u32(0, 99))),
    Clause("feature/migration-flags", "GET failed", Refuses(C.DEVICE_FEATURE, of_feature(MIGRATION, GET))),
    Clause("feature/migration-flags", "argsz is not", Says(C.DEVICE_FEATURE, u32(0, 99), of_feature(MIGRATION))),
    Clause("feature/migration-flags", "bytes instead of 32", Says(C.DEVICE_FEATURE, longer, of_feature(MIGRATION))),
    Clause("feature/migration-flags", "STOP_COPY is not", Says(C.DEVICE_FEATURE, u32(8, 0), of_feature(MIGRATION))),
    Clause("feature/impossible-set", "which can only be asked for", Takes(C.DEVICE_FEATURE)),
    Clause("feature/set-echoes", "is in failed", Refuses(C.DEVICE_FEATURE, state_set_to(S.RUNNING))),
    Clause("feature/set-echoes", "SET is answered", Says(C.DEVICE_FEATURE, u32(0, 99), state_set_to(S.RUNNING))),
    Clause("reset/ends-error", "the state is ERROR after a reset", Keeps(C.DEVICE_RESET)),
    Clause("migration/initial-state", "the state is STOP", Says(C.DEVICE_FEATURE, u32(8, 1), of_feature(STATE))),
    Clause(
        "migration/running-to-stop",
        "the state is RUNNING instead of STOP",
        Keeps(C.DEVICE_FEATURE, state_set_to(S.STOP), lambda it: it),
    ),
    Clause("migration/stop-copy-to-pre-copy", "STOP_COPY to PRE_COPY succeeded", Takes(C.DEVICE_FEATURE)),
    Clause("migration/invalid-states", "state 0 succeeded", Takes(C.DEVICE_FEATURE)),
    Clause("migration/invalid-states", "changed after 0 was", BehindRefusal(C.DEVICE_FEATURE, acts.stops)),
    Clause(
        "migration/round-trip",
        "a migration to itself changed config space",
        Behind(C.DEVICE_FEATURE, acts.sets_command, state_set_to(S.RUNNING)),
    ),
    Clause("migration/stopped-device", "is not STOP", Keeps(C.DEVICE_FEATURE, state_set_to(S.STOP), lambda it: it)),
    Clause("migration/stopped-device", "GET_INFO in STOP failed with EIO", sessions.RefusesCommandsWrongly),
    Clause("mig_data/reads-to-the-end", "without any state", Says(C.MIG_DATA_READ, lambda it: u32(4, 0)(it[:8]))),
    Clause("mig_data/reads-to-the-end", "data comes behind the end", Says(C.MIG_DATA_READ, one_more_at_the_end())),
    Clause("mig_data/small-pieces", "bytes in one piece and", Says(C.MIG_DATA_READ, one_less, begins(15))),
    Clause("mig_data/less-is-the-end", "a read of the state failed", Refuses(C.MIG_DATA_READ, begins(72))),
    Clause("mig_data/less-is-the-end", "64 bytes come with argsz 9", Says(C.MIG_DATA_READ, u32(0, 9))),
    Clause("mig_data/less-is-the-end", "come behind a piece", Hears(C.MIG_DATA_READ, u32(4, 32), begins(72))),
    Clause("mig_data/write-reply-is-header", "that was saved failed", Refuses(C.MIG_DATA_WRITE)),
    Clause("mig_data/write-reply-is-header", "instead of 16", Says(C.MIG_DATA_WRITE, longer)),
    Clause("mig_data/read-running", "reading in RUNNING succeeded", Takes(C.MIG_DATA_READ)),
    Clause("mig_data/read-running", "changed after reading in", BehindRefusal(C.MIG_DATA_READ, acts.stops)),
    Clause("migration_region/running-at-first", "the state is 0", Says(C.REGION_READ, u32(16, 0), v1(0, 4)), V1),
    Clause("migration_region/arcs", "instead of stop-and-copy", Keeps(C.REGION_WRITE, v1(0, 4), front(16)), V1),
    Clause("migration_region/invalid-states", "state 5 succeeded", Takes(C.REGION_WRITE, answer=front(16)), V1),
    Clause("migration_region/invalid-states", "changed after 5", BehindRefusal(C.REGION_WRITE, acts.stops_by_v1), V1),
    Clause("migration_region/read-only-registers", "pending_bytes succ", Takes(C.REGION_WRITE, answer=front(16)), V1),
    Clause("migration_region/register-widths", "a read of 1 bytes at 0 succeeded", Takes(C.REGION_READ), V1),
    Clause("migration_region/reserved", "a write of what is reserved failed", Refuses(C.REGION_WRITE, v1(4, 4)), DRAFT),
    Clause("migration_region/reserved", "a read of that failed", Refuses(C.REGION_READ, v1(4, 4)), DRAFT),
    Clause("migration_region/reserved", "the state is 0", Behind(C.REGION_WRITE, acts.stops_by_v1, v1(4, 4)), DRAFT),
    Clause(
        "migration_region/pending-again", "pending_bytes reads 1, 2, 3", Says(C.REGION_READ, counting(), v1(8, 8)), V1
    ),
    Clause("migration_region/round-trip", "without any state", Says(C.REGION_READ, u64(16, 0), v1(8, 8)), V1),
    Clause(
        "migration_region/round-trip", "pending behind the end", Says(C.REGION_READ, pending_at_the_end(), v1(8, 8)), V1
    ),
    Clause(
        "migration_region/round-trip",
        "itself changed config",
        Behind(C.REGION_WRITE, acts.sets_command, v1(0, 4)),
        V1,
    ),
]

SESSION_CLAUSES = [
    Clause("session/next-client", "the next client finds another device", faults.IsAnotherForEach()),
    Clause("session/maps-are-dropped", "what the last client mapped", Behind(C.DMA_MAP, acts.keeps_its_maps)),
    Clause(
        "session/irqs-are-dropped",
        "of the last client was fired",
        Behind(C.SET_IRQS, acts.keeps_its_eventfds, irqs(EVENTFD | TRIGGER, 1)),
    ),
    Clause("session/fds-are-closed", "keeps 1 descriptor open", Fault()),
    Clause("session/nothing-is-left", "keeps 1 descriptor open", Fault()),
    Clause("session/fds-on-rubbish", "keeps 1 descriptor open", Fault()),
    Clause("session/rubbish", "the next client is not served", sessions.serves(20)),
    Clause("session/interrupted-write", "half a write was done", sessions.DoesHalfAWrite),
    Clause("session/memory", "the server has grown by 64 MiB", Fault()),
]
"""For descriptors and memory the server is looked at otherwise: as if it had more each time."""

CLAUSES = (
    *VERSION_CLAUSES,
    *MESSAGE_CLAUSES,
    *DESCRIPTION_CLAUSES,
    *ACCESS_CLAUSES,
    *MEMORY_CLAUSES,
    *MIGRATION_CLAUSES,
    *SESSION_CLAUSES,
    *BOUND_CLAUSES,
)
