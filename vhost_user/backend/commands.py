"""What each request of a front-end does, as a table.

A function is given the payload and the message's descriptors, and takes those out of the list that it keeps. What it
returns is the reply's payload, where the request has one of its own.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from userdev.errors import AUTHORS_FAILURES, ProtocolError
from userdev.eventfd import is_eventfd
from vhost_user.backend.back_end import BackEnd, log
from vhost_user.backend.channel import BackEndChannel
from vhost_user.backend.inflight import InflightRegion, make_region
from vhost_user.backend.vring import Vring
from vhost_user.memory import DirtyLog
from vhost_user.memory.table import MAX_SLOTS
from vhost_user.wire import (
    NO_FD,
    VRING_MASK,
    DeviceStatus,
    FrontEndRequest,
    ProtocolFeature,
    VirtioFeature,
    check_protocol_features,
)
from vhost_user.wire.features import words_of
from vhost_user.wire.payloads import (
    Config,
    DeviceStateTransfer,
    Inflight,
    IotlbMessage,
    Log,
    Region,
    VringAddress,
    VringState,
)

Fds = list[int]


class Answer(NamedTuple):
    """A reply with descriptors, which are closed once they are sent."""

    value: Any
    fds: Fds


SAVE, LOAD = 0, 1
STOPPED = 0
"""Directions and the only phase of SET_DEVICE_STATE_FD ("Device state transfer parameters")."""

Command = Callable[[BackEnd, Any, Fds], Any]

SET_BY_MIGRATION = 1
"""In the flags of SET_CONFIG: read-only fields too ("Virtio device config space")."""


def _get_features(back_end: BackEnd, _: None, __: Fds) -> int:
    return int(back_end.features)


def _set_features(back_end: BackEnd, value: int, _: Fds) -> None:
    features = VirtioFeature(value)
    if unknown := features & ~back_end.features:
        raise ProtocolError(f"features that were not offered: {words_of(unknown)}")
    back_end.agree(features=features)
    if VirtioFeature.PROTOCOL_FEATURES not in features:
        back_end.vrings.enable_all()
    try:
        back_end.model.device.on_features(value)
    except AUTHORS_FAILURES:
        log.exception("the device failed at on_features")


def _get_protocol_features(back_end: BackEnd, _: None, __: Fds) -> int:
    return int(back_end.protocol_features)


def _set_protocol_features(back_end: BackEnd, value: int, _: Fds) -> None:
    features = ProtocolFeature(value)
    if unknown := features & ~back_end.protocol_features:
        raise ProtocolError(f"protocol features that were not offered: {words_of(unknown)}")
    check_protocol_features(features)
    back_end.agree(protocol_features=features)


def _set_owner(back_end: BackEnd, _: None, __: Fds) -> None:
    back_end.begin_anew()


def _reset_owner(back_end: BackEnd, _: None, __: Fds) -> None:
    """No longer used; to "disable all rings" is all that may be made of it, as front-ends do not expect more."""
    back_end.vrings.disable_all()


def _reset_device(back_end: BackEnd, _: None, __: Fds) -> None:
    back_end.reset(device_too=True)


def _set_status(back_end: BackEnd, value: int, _: Fds) -> None:
    """0 is a reset. With RESET_DEVICE that has a message of its own, and QEMU says 0 whenever a guest is stopped."""
    if value > 0xFF:
        raise ProtocolError(f"a device status of {value:#x}")
    if value == 0:
        back_end.reset(device_too=ProtocolFeature.RESET_DEVICE not in back_end.negotiated.protocol_features)
    back_end.status = DeviceStatus(value)


def _get_status(back_end: BackEnd, _: None, __: Fds) -> int:
    return int(back_end.status)


# Memory


def _set_mem_table(back_end: BackEnd, regions: tuple[Region, ...], fds: Fds) -> tuple[Region, ...]:
    back_end.vrings.set_memory(regions, fds)
    return tuple(back_end.mapped_at(region) for region in regions)


def _get_max_mem_slots(_: BackEnd, __: None, ___: Fds) -> int:
    return MAX_SLOTS


def _add_mem_reg(back_end: BackEnd, region: Region, fds: Fds) -> Region:
    back_end.vrings.table.add(region, fds[0])
    return back_end.mapped_at(region)


def _rem_mem_reg(back_end: BackEnd, region: Region, _: Fds) -> None:
    back_end.vrings.remove_memory(region)


def _postcopy_advise(back_end: BackEnd, _: None, __: Fds) -> Answer:
    return Answer(None, [back_end.postcopy.advise()])


def _postcopy_listen(back_end: BackEnd, _: None, __: Fds) -> None:
    back_end.listen_for_pages()


def _postcopy_end(back_end: BackEnd, _: None, __: Fds) -> int:
    back_end.end_postcopy()
    return 0


def _iotlb_msg(back_end: BackEnd, message: IotlbMessage, _: Fds) -> int:
    back_end.vrings.translate(message)
    return 0


def _set_log_base(back_end: BackEnd, said: Log | int, fds: Fds) -> int:
    if not isinstance(said, Log) or not fds:
        raise ProtocolError("a dirty log that is not shared memory (LOG_SHMFD)", errno.ENOTSUP)
    back_end.vrings.set_log(DirtyLog(said, fds[0]))
    return 0


def _set_log_fd(_: BackEnd, __: None, ___: Fds) -> None:
    """What it would tell nobody waits for: QEMU looks at the log itself."""


# Rings


def _set_vring_num(back_end: BackEnd, said: VringState, _: Fds) -> None:
    back_end.vrings.set_size(back_end.vrings[said.vring], said.num)


def _set_vring_base(back_end: BackEnd, said: VringState, _: Fds) -> None:
    back_end.go_on_at(back_end.vrings[said.vring], said.num)


def _set_vring_addr(back_end: BackEnd, said: VringAddress, _: Fds) -> None:
    back_end.vrings.set_addresses(back_end.vrings[said.vring], said)


def _get_vring_base(back_end: BackEnd, said: VringState, _: Fds) -> VringState:
    return said._replace(num=back_end.vrings.stop(back_end.vrings[said.vring]))


def _set_vring_enable(back_end: BackEnd, said: VringState, _: Fds) -> None:
    if said.num > 1:
        raise ProtocolError(f"a queue can be enabled (1) or disabled (0), not {said.num}")
    back_end.vrings.enable(back_end.vrings[said.vring], on=bool(said.num))


def _set_vring_kick(back_end: BackEnd, value: int, fds: Fds) -> None:
    vring, fd = _descriptor(back_end, value, fds)
    try:
        back_end.vrings.set_kick(vring, fd)
    except OSError as error:
        raise ProtocolError(f"a kick that cannot be waited for: {error.strerror}") from None
    fds.clear()
    back_end.resume()


def _vring_kick(back_end: BackEnd, said: VringState, _: Fds) -> None:
    """Answered, where that is asked for, once what was there is done: what a simulation waits for."""
    back_end.vrings.kick(back_end.vrings[said.vring])
    back_end.resume()


def _set_vring_call(back_end: BackEnd, value: int, fds: Fds) -> None:
    vring, fd = _descriptor(back_end, value, fds)
    fds.clear()
    back_end.vrings.set_call(vring, fd)


def _set_vring_err(back_end: BackEnd, value: int, fds: Fds) -> None:
    vring, fd = _descriptor(back_end, value, fds)
    fds.clear()
    back_end.vrings.set_err(vring, fd)


def _descriptor(back_end: BackEnd, value: int, fds: Fds) -> tuple[Vring, int | None]:
    vring = back_end.vrings[value & VRING_MASK]
    if value & NO_FD:
        return vring, None
    if not is_eventfd(fds[0]):
        raise ProtocolError("a descriptor that is no eventfd")
    return vring, fds[0]


def _get_queue_num(back_end: BackEnd, _: None, __: Fds) -> int:
    return back_end.model.device.queues.counted


def _get_inflight_fd(back_end: BackEnd, wanted: Inflight, _: Fds) -> Answer:
    described, fd = make_region(wanted, packed=back_end.vrings.is_packed, queues=back_end.model.device.queues.count)
    return Answer(described, [fd])


def _set_inflight_fd(back_end: BackEnd, described: Inflight, fds: Fds) -> None:
    region = InflightRegion(
        described, fds[0], packed=back_end.vrings.is_packed, queues=back_end.model.device.queues.count
    )
    back_end.vrings.set_inflight(region)


# Configuration space


def _get_config(back_end: BackEnd, wanted: Config, _: Fds) -> Config:
    """As many bytes as are asked for: front-ends ask for structures that are longer than what a device has of them."""
    try:
        space = back_end.model.config.read()
    except ValueError as error:
        raise ProtocolError(f"configuration space cannot be read: {error}", errno.EIO) from None
    back_end.config_was_read = True
    data = space[wanted.offset : wanted.offset + wanted.size]
    return wanted._replace(data=data + bytes(wanted.size - len(data)))


def _set_config(back_end: BackEnd, said: Config, _: Fds) -> None:
    try:
        names = back_end.model.config.write(said.offset, said.data, read_only_too=bool(said.flags & SET_BY_MIGRATION))
    except ValueError as error:
        raise ProtocolError(str(error)) from None
    for name in names:
        try:
            back_end.model.device.on_config(name)
        except AUTHORS_FAILURES:
            log.exception("the device failed at on_config")


def _set_device_state_fd(back_end: BackEnd, said: DeviceStateTransfer, fds: Fds) -> int:
    """NO_FD: the front-end's descriptor is used, as a pipe is all that state needs."""
    if said.phase != STOPPED or said.direction not in (SAVE, LOAD):
        raise ProtocolError(f"a device's state in direction {said.direction} and phase {said.phase}")
    if back_end.is_front_ends_end(fds[0]):
        raise ProtocolError("the front-end's own end of the connection for a device's state")
    (back_end.save_to if said.direction == SAVE else back_end.load_from)(fds[0])
    fds.clear()
    return NO_FD


def _check_device_state(back_end: BackEnd, _: None, __: Fds) -> int:
    return back_end.check_transfer()


def _set_backend_req_fd(back_end: BackEnd, _: None, fds: Fds) -> None:
    if back_end.is_front_ends_end(fds[0]):
        raise ProtocolError("the front-end's own end of the connection as the back-end's channel: it would never end")
    channel = BackEndChannel(fds[0], back_end.watcher)
    fds.clear()
    back_end.set_channel(channel)


_R = FrontEndRequest

COMMANDS: Mapping[FrontEndRequest, Command] = MappingProxyType(
    {
        _R.GET_FEATURES: _get_features,
        _R.SET_FEATURES: _set_features,
        _R.GET_PROTOCOL_FEATURES: _get_protocol_features,
        _R.SET_PROTOCOL_FEATURES: _set_protocol_features,
        _R.SET_OWNER: _set_owner,
        _R.RESET_OWNER: _reset_owner,
        _R.RESET_DEVICE: _reset_device,
        _R.SET_STATUS: _set_status,
        _R.GET_STATUS: _get_status,
        _R.SET_MEM_TABLE: _set_mem_table,
        _R.GET_MAX_MEM_SLOTS: _get_max_mem_slots,
        _R.ADD_MEM_REG: _add_mem_reg,
        _R.REM_MEM_REG: _rem_mem_reg,
        _R.IOTLB_MSG: _iotlb_msg,
        _R.POSTCOPY_ADVISE: _postcopy_advise,
        _R.POSTCOPY_LISTEN: _postcopy_listen,
        _R.POSTCOPY_END: _postcopy_end,
        _R.SET_LOG_BASE: _set_log_base,
        _R.SET_LOG_FD: _set_log_fd,
        _R.SET_VRING_NUM: _set_vring_num,
        _R.SET_VRING_BASE: _set_vring_base,
        _R.SET_VRING_ADDR: _set_vring_addr,
        _R.GET_VRING_BASE: _get_vring_base,
        _R.SET_VRING_ENABLE: _set_vring_enable,
        _R.SET_VRING_KICK: _set_vring_kick,
        _R.VRING_KICK: _vring_kick,
        _R.SET_VRING_CALL: _set_vring_call,
        _R.SET_VRING_ERR: _set_vring_err,
        _R.GET_QUEUE_NUM: _get_queue_num,
        _R.GET_INFLIGHT_FD: _get_inflight_fd,
        _R.SET_INFLIGHT_FD: _set_inflight_fd,
        _R.GET_CONFIG: _get_config,
        _R.SET_CONFIG: _set_config,
        _R.SET_BACKEND_REQ_FD: _set_backend_req_fd,
        _R.SET_DEVICE_STATE_FD: _set_device_state_fd,
        _R.CHECK_DEVICE_STATE: _check_device_state,
    }
)

ERRORS: Mapping[FrontEndRequest, Callable[[Any], Any]] = MappingProxyType(
    {
        _R.GET_CONFIG: lambda wanted: wanted._replace(size=0, data=b""),
        _R.SET_LOG_BASE: lambda _: errno.EINVAL,
        _R.IOTLB_MSG: lambda _: errno.EINVAL,
        _R.SET_DEVICE_STATE_FD: lambda _: NO_FD | errno.EINVAL,
    }
)
"""Replies of their own by which a request can be refused; any other that has one is refused by the connection's end."""
