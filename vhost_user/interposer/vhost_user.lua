-- Wireshark dissector for vhost-user, for the pcapng files of `vhost-user trace export --format pcapng`.
--
--   wireshark -X lua_script:vhost_user.lua session.pcapng
--
-- Packets are of link type USER0 and start with a header of the trace's own (see userdev/trace/pcapng.py): direction,
-- channel, number of the record and of the request's record, descriptors. What follows is the message as it was on the
-- wire, in the byte order of the machine that recorded it: little-endian.

local vhost_user = Proto("vhost_user", "vhost-user")

local DIRECTIONS = { [0] = "to back-end", [1] = "to front-end" }
local VIEWS = { [1] = "only received", [2] = "only sent", [3] = "passed unchanged" }
local CHANNELS = { [0] = "connection", [1] = "back-end's channel" }
local KINDS = { [2] = "message", [3] = "bytes that are no message", [4] = "note" }
local FD_KINDS = { [0] = "other", "file", "memfd", "eventfd", "socket", "pipe", "device", "hugetlb" }
local FRONT_END = {
  "GET_FEATURES", "SET_FEATURES", "SET_OWNER", "RESET_OWNER", "SET_MEM_TABLE", "SET_LOG_BASE", "SET_LOG_FD",
  "SET_VRING_NUM", "SET_VRING_ADDR", "SET_VRING_BASE", "GET_VRING_BASE", "SET_VRING_KICK", "SET_VRING_CALL",
  "SET_VRING_ERR", "GET_PROTOCOL_FEATURES", "SET_PROTOCOL_FEATURES", "GET_QUEUE_NUM", "SET_VRING_ENABLE", "SEND_RARP",
  "NET_SET_MTU", "SET_BACKEND_REQ_FD", "IOTLB_MSG", "SET_VRING_ENDIAN", "GET_CONFIG", "SET_CONFIG",
  "CREATE_CRYPTO_SESSION", "CLOSE_CRYPTO_SESSION", "POSTCOPY_ADVISE", "POSTCOPY_LISTEN", "POSTCOPY_END",
  "GET_INFLIGHT_FD", "SET_INFLIGHT_FD", "GPU_SET_SOCKET", "RESET_DEVICE", "VRING_KICK", "GET_MAX_MEM_SLOTS",
  "ADD_MEM_REG", "REM_MEM_REG", "SET_STATUS", "GET_STATUS", "GET_SHARED_OBJECT", "SET_DEVICE_STATE_FD",
  "CHECK_DEVICE_STATE", "GET_SHMEM_CONFIG", "GET_VRING_BASE_SKIP_DRAIN",
}
local BACK_END = {
  "BACKEND_IOTLB_MSG", "BACKEND_CONFIG_CHANGE_MSG", "BACKEND_VRING_HOST_NOTIFIER_MSG", "BACKEND_VRING_CALL",
  "BACKEND_VRING_ERR", "BACKEND_SHARED_OBJECT_ADD", "BACKEND_SHARED_OBJECT_REMOVE", "BACKEND_SHARED_OBJECT_LOOKUP",
  "BACKEND_SHMEM_MAP", "BACKEND_SHMEM_UNMAP",
}
local PROTOCOL_FEATURES = {
  [0] = "MQ", "LOG_SHMFD", "RARP", "REPLY_ACK", "MTU", "BACKEND_REQ", "CROSS_ENDIAN", "CRYPTO_SESSION", "PAGEFAULT",
  "CONFIG", "BACKEND_SEND_FD", "HOST_NOTIFIER", "INFLIGHT_SHMFD", "RESET_DEVICE", "INBAND_NOTIFICATIONS",
  "CONFIGURE_MEM_SLOTS", "STATUS", "XEN_MMAP", "SHARED_OBJECT", "DEVICE_STATE", "GET_VRING_BASE_INFLIGHT",
  "GPA_ADDRESSES", "SHMEM", "GET_VRING_BASE_SKIP_DRAIN",
}
local FEATURES = {
  [24] = "NOTIFY_ON_EMPTY", [26] = "LOG_ALL", [27] = "ANY_LAYOUT", [28] = "INDIRECT_DESC", [29] = "EVENT_IDX",
  [30] = "PROTOCOL_FEATURES", [32] = "VERSION_1", [33] = "ACCESS_PLATFORM", [34] = "RING_PACKED", [35] = "IN_ORDER",
  [36] = "ORDER_PLATFORM", [37] = "SR_IOV", [38] = "NOTIFICATION_DATA", [39] = "NOTIF_CONFIG_DATA",
  [40] = "RING_RESET", [41] = "ADMIN_VQ",
}

-- Fields that several messages share have one name, so that a filter finds them all: vhost_user.vring == 0.
local u8, u16, u32, u64 = 1, 2, 4, 8
local FIELDS = {
  value = { u64, base.HEX }, vring = { u32 }, num = { u32 }, vring_flags = { u32, base.HEX },
  descriptor = { u64, base.HEX }, used = { u64, base.HEX }, available = { u64, base.HEX }, log = { u64, base.HEX },
  offset = { u64, base.HEX }, config_offset = { u32 }, config_size = { u32 }, config_flags = { u32, base.HEX },
  iova = { u64, base.HEX }, bytes = { u64 }, user_address = { u64, base.HEX }, permissions = { u8 },
  type = { u8 }, mmap_size = { u64 }, mmap_offset = { u64, base.HEX }, num_queues = { u16 }, queue_size = { u16 },
  transfer = { u32 }, phase = { u32 }, entries = { u32 }, padding = { u32, base.HEX }, guest_address = { u64, base.HEX },
}
local STATE, CONFIG = { "vring", "num" }, { "config_offset", "config_size", "config_flags" }
local REGION = { "guest_address", "bytes", "user_address", "mmap_offset" }
local ONE_REGION = { "value", table.unpack(REGION) }
local IOTLB = { "iova", "bytes", "user_address", "permissions", "type" }
local INFLIGHT = { "mmap_size", "mmap_offset", "num_queues", "queue_size" }
local LAYOUTS = {
  SET_MEM_TABLE = { "entries", "padding" }, SET_LOG_BASE = { "bytes", "offset" }, SET_VRING_NUM = STATE,
  SET_VRING_ADDR = { "vring", "vring_flags", "descriptor", "used", "available", "log" }, SET_VRING_BASE = STATE,
  GET_VRING_BASE = STATE, SET_VRING_ENABLE = STATE, SET_VRING_ENDIAN = STATE, VRING_KICK = STATE,
  GET_VRING_BASE_SKIP_DRAIN = STATE, IOTLB_MSG = IOTLB, BACKEND_IOTLB_MSG = IOTLB, GET_CONFIG = CONFIG,
  SET_CONFIG = CONFIG, GET_INFLIGHT_FD = INFLIGHT, SET_INFLIGHT_FD = INFLIGHT, ADD_MEM_REG = ONE_REGION,
  REM_MEM_REG = ONE_REGION, SET_DEVICE_STATE_FD = { "transfer", "phase" }, BACKEND_VRING_CALL = STATE,
  BACKEND_VRING_ERR = STATE,
}
local RINGS = { SET_VRING_KICK = true, SET_VRING_CALL = true, SET_VRING_ERR = true }

local field = {
  direction = ProtoField.uint8("vhost_user.direction", "Direction", base.DEC, DIRECTIONS),
  view = ProtoField.uint8("vhost_user.view", "View", base.DEC, VIEWS),
  kind = ProtoField.uint8("vhost_user.kind", "Kind", base.DEC, KINDS),
  channel = ProtoField.uint16("vhost_user.channel", "Channel", base.DEC, CHANNELS),
  record = ProtoField.uint32("vhost_user.record", "Record"),
  request = ProtoField.uint32("vhost_user.request", "Answers record"),
  fd_kind = ProtoField.uint32("vhost_user.fd.kind", "Descriptor", base.DEC, FD_KINDS),
  fd_size = ProtoField.uint64("vhost_user.fd.size", "Size"),
  fd_inode = ProtoField.uint64("vhost_user.fd.inode", "Inode"),
  number = ProtoField.uint32("vhost_user.number", "Request number"),
  name = ProtoField.string("vhost_user.name", "Request"),
  msg_flags = ProtoField.uint32("vhost_user.message_flags", "Message flags", base.HEX),
  reply = ProtoField.bool("vhost_user.reply", "Reply"),
  need_reply = ProtoField.bool("vhost_user.need_reply", "Acknowledgement asked for"),
  msg_size = ProtoField.uint32("vhost_user.payload_size", "Payload size"),
  features = ProtoField.string("vhost_user.features", "Features"),
  data = ProtoField.bytes("vhost_user.data", "Data"),
  note = ProtoField.string("vhost_user.note", "Note"),
}
local makers = { [1] = ProtoField.uint8, [2] = ProtoField.uint16, [4] = ProtoField.uint32, [8] = ProtoField.uint64 }
local of_layout = {}
local all = {}
for _, known in pairs(field) do all[#all + 1] = known end
for name, is in pairs(FIELDS) do
  of_layout[name] = makers[is[1]]("vhost_user." .. name, name, is[2] or base.DEC)
  all[#all + 1] = of_layout[name]
end
vhost_user.fields = all

local function add_descriptors(range, count, tree)
  for index = 0, count - 1 do
    local at = index * 20
    local branch = tree:add(field.fd_kind, range(at, 4))
    branch:add(field.fd_size, range(at + 4, 8))
    branch:add(field.fd_inode, range(at + 12, 8))
  end
end

-- The names of the bits that are set, without those that are a device's own.
local function names(range, known)
  local found = {}
  for index = 0, range:len() * 8 - 1 do
    local byte = range(math.floor(index / 8), 1):uint()
    if known[index] and bit.band(byte, bit.lshift(1, index % 8)) ~= 0 then found[#found + 1] = known[index] end
  end
  return table.concat(found, "|")
end

-- The fields of a structure from a place on; returns where it ends and the words for the info column.
local function add_layout(layout, payload, at, tree)
  local words = {}
  for _, of in ipairs(layout) do
    local size = FIELDS[of][1]
    if payload:len() < at + size then return at, words end
    local range = payload(at, size)
    tree:add_le(of_layout[of], range)
    if of == "vring" or of == "num" or of == "entries" then words[#words + 1] = of .. " " .. range:le_uint() end
    at = at + size
  end
  return at, words
end

local function add_regions(payload, at, tree)
  while payload:len() >= at + 32 do
    at = add_layout(REGION, payload, at, tree)
  end
  return at
end

-- A message that is one number: features by name, a ring, or what it is.
local function add_number(name, payload, tree)
  local range = payload(0, 8)
  tree:add_le(of_layout.value, range)
  local known = nil
  if name == "GET_FEATURES" or name == "SET_FEATURES" then known = FEATURES end
  if name == "GET_PROTOCOL_FEATURES" or name == "SET_PROTOCOL_FEATURES" then known = PROTOCOL_FEATURES end
  if known then
    local text = names(range, known)
    tree:add(field.features, range, text)
    return { text }
  end
  if RINGS[name] then
    tree:add_le(of_layout.vring, payload(0, 1), payload(0, 1):uint())
    return { "vring " .. payload(0, 1):uint() }
  end
  return { "= 0x" .. range:le_uint64():tohex():gsub("^0+(%x)", "%1") }
end

local function add_payload(name, is_reply, payload, tree)
  local layout = LAYOUTS[name]
  local acknowledges = is_reply and name:sub(1, 4) ~= "GET_"
  if payload:len() == 8 and (not layout or acknowledges) then
    return 8, add_number(name, payload, tree)
  end
  if not layout then return 0, {} end
  local at, words = add_layout(layout, payload, 0, tree)
  if name == "SET_MEM_TABLE" then at = add_regions(payload, at, tree) end
  return at, words
end

local function add_message(message, channel, pinfo, tree)
  if message:len() < 12 then return end
  local number, flags = message(0, 4):le_uint(), message(4, 4):le_uint()
  local name = (channel == 1 and BACK_END or FRONT_END)[number] or ("request " .. number)
  local is_reply = bit.band(flags, 4) ~= 0
  tree:add_le(field.number, message(0, 4))
  tree:add(field.name, message(0, 4), name)
  local branch = tree:add_le(field.msg_flags, message(4, 4))
  branch:add(field.reply, message(4, 1), is_reply)
  branch:add(field.need_reply, message(4, 1), bit.band(flags, 8) ~= 0)
  tree:add_le(field.msg_size, message(8, 4))
  local words = { name }
  if is_reply then words[#words + 1] = "reply" end
  if message:len() > 12 then
    local payload = message(12):tvb()
    local at, found = add_payload(name, is_reply, payload, tree)
    for _, word in ipairs(found) do words[#words + 1] = word end
    if payload:len() > at then tree:add(field.data, payload(at)) end
  end
  pinfo.cols.info = table.concat(words, " ")
end

function vhost_user.dissector(buffer, pinfo, root)
  if buffer:len() < 20 or buffer(0, 4):string() ~= "VHUP" then return 0 end
  pinfo.cols.protocol = "vhost-user"
  local direction, kind, count = buffer(5, 1):uint(), buffer(8, 1):uint(), buffer(9, 1):uint()
  pinfo.cols.src = direction == 0 and "front-end" or "back-end"
  pinfo.cols.dst = direction == 0 and "back-end" or "front-end"
  local tree = root:add(vhost_user, buffer())
  tree:add(field.direction, buffer(5, 1))
  tree:add(field.view, buffer(6, 1))
  tree:add(field.kind, buffer(8, 1))
  tree:add(field.channel, buffer(10, 2))
  tree:add(field.record, buffer(12, 4))
  if buffer(16, 4):uint() ~= 0 then tree:add(field.request, buffer(16, 4)) end
  local start = 20 + count * 20
  if buffer:len() < start then return buffer:len() end
  if count > 0 then add_descriptors(buffer(20, count * 20), count, tree) end
  if buffer:len() == start then return buffer:len() end
  local body = buffer(start)
  if kind == 2 then
    add_message(body:tvb(), buffer(10, 2):uint(), pinfo, tree)
  elseif kind == 4 then
    tree:add(field.note, body)
    pinfo.cols.info = body:string()
  else
    tree:add(field.data, body)
    pinfo.cols.info = body:len() .. " bytes that are no message"
  end
  return buffer:len()
end

DissectorTable.get("wtap_encap"):add(wtap.USER0, vhost_user)
