"""A back-end of one connection without its socket: what was negotiated, the rings, the device. For `commands`."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from dataclasses import replace

from userdev.errors import AUTHORS_FAILURES, ProtocolError
from vhost_user.backend.channel import Answered, BackEndChannel
from vhost_user.backend.in_band import InBand
from vhost_user.backend.postcopy import Postcopy
from vhost_user.backend.transfer import Loading, Saving, StateTransfer
from vhost_user.backend.vring import Vring
from vhost_user.backend.vrings import PACKED_BASE, Vrings
from vhost_user.backend.watcher import Watcher
from vhost_user.backend.withheld import NOTHING, Withheld
from vhost_user.device import DeviceModel
from vhost_user.device.saved import MAX_STATE
from vhost_user.memory import userfault
from vhost_user.wire import BackEndRequest, DeviceStatus, Negotiated, ProtocolFeature, VirtioFeature
from vhost_user.wire.features import NEEDS
from vhost_user.wire.payloads import IotlbMessage, Region, VringState

log = logging.getLogger("vhost_user.backend")

_V, _P = VirtioFeature, ProtocolFeature

FEATURES = (
    _V.VERSION_1
    | _V.INDIRECT_DESC
    | _V.EVENT_IDX
    | _V.RING_PACKED
    | _V.IN_ORDER
    | _V.ACCESS_PLATFORM
    | _V.LOG_ALL
    | _V.PROTOCOL_FEATURES
)
"""Offered for every device, beside its own."""

PROTOCOL_FEATURES = (
    _P.MQ
    | _P.LOG_SHMFD
    | _P.REPLY_ACK
    | _P.BACKEND_REQ
    | _P.INFLIGHT_SHMFD
    | _P.RESET_DEVICE
    | _P.INBAND_NOTIFICATIONS
    | _P.CONFIGURE_MEM_SLOTS
    | _P.STATUS
    | _P.DEVICE_STATE
    | _P.GPA_ADDRESSES
)
"""Offered for every device: nothing that is not done, since QEMU agrees to nearly all."""


class BackEnd:
    """The state that the commands of one front-end change."""

    def __init__(
        self,
        model: DeviceModel,
        watcher: Watcher,
        is_front_ends_end: Callable[[int], bool],
        withheld: Withheld = NOTHING,
    ) -> None:
        """`is_front_ends_end` tells whether a descriptor is the other end of the connection."""
        self.model = model
        self._withheld = withheld
        self.watcher = watcher
        self.is_front_ends_end = is_front_ends_end
        self._in_band = InBand(self._ask_in_band)
        self.vrings = Vrings(model, watcher, self._ask_translation, self._in_band)
        self.negotiated = Negotiated()
        self.status = DeviceStatus(0)
        self._channel: BackEndChannel | None = None
        self._transfer: StateTransfer | None = None
        self.postcopy = Postcopy()
        self.config_was_read = False
        self._goes_on = False
        """Whether the front-end goes on with rings that another back-end has served, and what it knows of
        configuration space is from that one: QEMU, reconnected, does not read it again."""
        self.config_has_changed = False
        """And the front-end was not told: a device that is suspended, or has no channel, says nothing."""

    @property
    def features(self) -> VirtioFeature:
        """Those that may be agreed on."""
        return (FEATURES | VirtioFeature(self.model.device.features)) & ~self._withheld.features

    @property
    def protocol_features(self) -> ProtocolFeature:
        """Those that may be agreed on."""
        known = PROTOCOL_FEATURES | _P.CONFIG if self.model.config.size else PROTOCOL_FEATURES
        if userfault.is_allowed():
            known |= _P.PAGEFAULT
        known &= ~self._withheld.protocol_features
        for feature, needed in NEEDS.items():
            if needed not in known:
                known &= ~feature
        return known

    def agree(self, *, features: VirtioFeature | None = None, protocol_features: ProtocolFeature | None = None) -> None:
        """Have these be agreed on.

        Raises:
            ProtocolError: rings that run cannot become others.
        """
        if features is not None:
            self.vrings.set_features(features)
            self.negotiated = replace(self.negotiated, features=features)
        if protocol_features is not None:
            self.negotiated = replace(self.negotiated, protocol_features=protocol_features)
            self.vrings.address_by_guest(_P.GPA_ADDRESSES in protocol_features)

    def set_channel(self, channel: BackEndChannel | None) -> None:
        """Have this channel, and no other."""
        before, self._channel = self._channel, channel
        if before is not None:
            before.close()
        self._in_band.forget()
        if channel is not None:
            self.vrings.misses.ask_again()
            self.vrings.tell_in_band()
            self.resume()

    def tell_config_changed(self) -> None:
        """Have the front-end read configuration space again, if it has given a way to say so."""
        self.config_has_changed = True
        self.resume()

    def resume(self) -> None:
        """Say what there was to say while no ring was started ("Suspended device state"), or no way to say it."""
        if not ((self.config_has_changed or self._goes_on) and self.vrings.started):
            return
        if self._channel is not None and ProtocolFeature.CONFIG in self.negotiated.protocol_features:
            self._goes_on = False
            self.config_has_changed = not self._channel.tell(BackEndRequest.CONFIG_CHANGE_MSG)

    def go_on_at(self, vring: Vring, base: int) -> None:
        """Have a ring begin where the front-end says; one that was served before has a driver that knows its device.

        Raises:
            ProtocolError: it runs.
        """
        before = vring.base
        self.vrings.set_base(vring, base)
        self._goes_on |= before is None and base not in (0, PACKED_BASE) and not self.config_was_read

    def reset(self, *, device_too: bool) -> None:
        """Have rings be stopped and disabled, and the device as after power-on if wanted; memory stays."""
        self.vrings.reset()
        self.drop_transfer()
        self.status = DeviceStatus(0)
        if device_too:
            self._guarded_reset()

    def begin_anew(self) -> None:
        """Have another owner, who says everything again, but for what comes before SET_OWNER: protocol features.

        QEMU's device_add on a character device that had a device before is one.
        """
        self.vrings.forget()
        self.drop_transfer()
        self.end_postcopy()
        self.status = DeviceStatus(0)
        self.config_was_read = self._goes_on = False
        self.agree(features=VirtioFeature(0))

    def close(self) -> None:
        """Let go of everything of the front-end's."""
        self.vrings.close()
        self.drop_transfer()
        self.end_postcopy()
        self.set_channel(None)

    # A migration whose memory comes later

    def listen_for_pages(self) -> None:
        """Have memory be waited for, what is shared already and what will be.

        Raises:
            ProtocolError: POSTCOPY_ADVISE has not come, or rings run.
        """
        self._check_suspended()
        self.postcopy.listen()
        for region in self.vrings.table.regions:
            self.postcopy.register(region)
        self.negotiated = replace(self.negotiated, postcopy=True)

    def mapped_at(self, region: Region) -> Region:
        """The region with its address in this process, as postcopy wants it; otherwise as it is.

        Raises:
            ProtocolError: postcopy cannot have it.
        """
        if not self.postcopy.is_listening:
            return region
        return region._replace(user_address=self.postcopy.register(self.vrings.table.region(region)))

    def end_postcopy(self) -> None:
        """All memory has come, or nobody waits for it."""
        self.postcopy.end()
        self.negotiated = replace(self.negotiated, postcopy=False)

    # The device's state

    def save_to(self, fd: int) -> None:
        """Take over a descriptor, and write the device's state to it.

        Raises:
            ProtocolError: it cannot be saved, or not now, or not there; the descriptor stays the caller's.
        """
        self._begin_transfer()
        self._transfer = Saving(fd, self.watcher, self.model.save())

    def load_from(self, fd: int) -> None:
        """Take over a descriptor, and have the device be in the state that comes from it, once that is whole.

        Raises:
            ProtocolError: not now, or not from there; the descriptor stays the caller's.
        """
        self._begin_transfer()
        self._transfer = Loading(fd, self.watcher, self._load, MAX_STATE)

    def check_transfer(self) -> int:
        """How the last transfer ended, waited for: 0, or an errno."""
        return errno.EINVAL if self._transfer is None else self._transfer.finish()

    def drop_transfer(self) -> None:
        """Forget a transfer, whatever became of it."""
        transfer, self._transfer = self._transfer, None
        if transfer is not None:
            transfer.close()

    def _begin_transfer(self) -> None:
        self.drop_transfer()
        self._check_suspended()

    def _load(self, state: bytes) -> None:
        self._check_suspended()
        self.model.load(state)

    def _check_suspended(self) -> None:
        if self.vrings.started:
            raise ProtocolError("this is done while all rings are stopped", errno.EBUSY)

    # What is waited for

    @property
    def deadline(self) -> float | None:
        """When `expire` is to be called (of `monotonic`); None: nothing is waited for."""
        ends = [self.vrings.misses.deadline]
        if self._transfer is not None and self._transfer.outcome is None:
            ends.append(self._transfer.until)
        return min((end for end in ends if end is not None), default=None)

    def expire(self, now: float) -> None:
        """Give up what was waited for too long."""
        self.vrings.misses.expire(now)
        if self._transfer is not None and self._transfer.outcome is None and now >= self._transfer.until:
            self._transfer.expire()

    def _ask_translation(self, wanted: IotlbMessage, answered: Answered) -> None:
        """Without a channel, or a way to answer, there is only the front-end's own word: an update."""
        if self._channel is None:
            log.warning("a translation of %#x is missing, and there is no channel to ask for it on", wanted.iova)
        elif ProtocolFeature.REPLY_ACK in self.negotiated.protocol_features:
            self._channel.ask(BackEndRequest.IOTLB_MSG, wanted, answered)
        else:
            self._channel.tell(BackEndRequest.IOTLB_MSG, wanted)

    def _ask_in_band(self, request: BackEndRequest, said: VringState, answered: Answered) -> bool:
        if self._channel is None or ProtocolFeature.INBAND_NOTIFICATIONS not in self.negotiated.protocol_features:
            return False
        return self._channel.ask(request, said, answered)

    def _guarded_reset(self) -> None:
        try:
            self.model.reset()
        except AUTHORS_FAILURES:
            log.exception("the device failed at a reset")
