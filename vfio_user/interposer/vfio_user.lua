-- Wireshark dissector for vfio-user, for the pcapng files of `vfio-user trace export --format pcapng`.
--
--   wireshark -X lua_script:vfio_user.lua session.pcapng
--
-- Packets are of link type USER0 and start with a header of the trace's own (see trace/pcapng.py): direction, dialect,
-- number of the record and of the request's record, descriptors. What follows is the message as it was on the wire.

local vfio_user = Proto("vfio_user", "vfio-user")

local DIRECTIONS = { [0] = "to server", [1] = "to client" }
local VIEWS = { [1] = "only received", [2] = "only sent", [3] = "passed unchanged" }
local DIALECTS = {
  [0] = "current", [1] = "draft-v6", [2] = "region-migration", [3] = "current, 32-bit DMA counts",
  [4] = "region-migration, 32-bit DMA counts",
}
local KINDS = { [2] = "message", [3] = "bytes that are no message", [4] = "note" }
local FD_KINDS = { [0] = "other", "file", "memfd", "eventfd", "socket", "pipe", "device", "hugetlb" }
local REGIONS = { [0] = "BAR0", "BAR1", "BAR2", "BAR3", "BAR4", "BAR5", "ROM", "CONFIG", "VGA", "MIGRATION" }
local IRQS = { [0] = "INTX", "MSI", "MSIX", "ERR", "REQ" }
local FEATURES = {
  [1] = "MIGRATION", [2] = "MIG_DEVICE_STATE", [6] = "DMA_LOGGING_START", [7] = "DMA_LOGGING_STOP",
  [8] = "DMA_LOGGING_REPORT",
}
local STATES = {
  [0] = "ERROR", "STOP", "RUNNING", "STOP_COPY", "RESUMING", "RUNNING_P2P", "PRE_COPY", "PRE_COPY_P2P",
}
local CURRENT = {
  "VERSION", "DMA_MAP", "DMA_UNMAP", "DEVICE_GET_INFO", "DEVICE_GET_REGION_INFO", "DEVICE_GET_REGION_IO_FDS",
  "DEVICE_GET_IRQ_INFO", "DEVICE_SET_IRQS", "REGION_READ", "REGION_WRITE", "DMA_READ", "DMA_WRITE", "DEVICE_RESET",
  "DIRTY_PAGES", "REGION_WRITE_MULTI", "DEVICE_FEATURE", "MIG_DATA_READ", "MIG_DATA_WRITE",
}
local DRAFT = {
  "VERSION", "DMA_MAP", "DMA_UNMAP", "DEVICE_GET_INFO", "DEVICE_GET_REGION_INFO", "DEVICE_GET_IRQ_INFO",
  "DEVICE_SET_IRQS", "REGION_READ", "REGION_WRITE", "DMA_READ", "DMA_WRITE", "VM_INTERRUPT", "DEVICE_RESET",
  "DIRTY_PAGES",
}

-- Fields that several commands share have one name, so that a filter finds them all: vfio_user.region == 0.
local u8, u16, u32, u64 = 1, 2, 4, 8
local FIELDS = {
  argsz = { u32 }, flags = { u32, base.HEX }, offset = { u64, base.HEX }, addr = { u64, base.HEX },
  size = { u64, base.HEX }, num_regions = { u32 }, num_irqs = { u32 }, region = { u32, base.DEC, REGIONS },
  cap_offset = { u32 }, irq = { u32, base.DEC, IRQS }, start = { u32 }, nr_vectors = { u32 }, length = { u32 },
  dma_length = { u64 }, address = { u64, base.HEX }, nr_writes = { u64 }, subindex = { u32 }, major = { u16 },
  minor = { u16 }, feature_flags = { u32, base.HEX }, data_size = { u32 }, nr_entries = { u32 },
}
local LAYOUTS = {
  VERSION = { "major", "minor" },
  DMA_MAP = { "argsz", "flags", "offset", "addr", "size" },
  DMA_UNMAP = { "argsz", "flags", "addr", "size" },
  DEVICE_GET_INFO = { "argsz", "flags", "num_regions", "num_irqs" },
  DEVICE_GET_REGION_INFO = { "argsz", "flags", "region", "cap_offset", "size", "offset" },
  DEVICE_GET_REGION_IO_FDS = { "argsz", "flags", "region", "nr_entries" },
  DEVICE_GET_IRQ_INFO = { "argsz", "flags", "irq", "nr_vectors" },
  DEVICE_SET_IRQS = { "argsz", "flags", "irq", "start", "nr_vectors" },
  REGION_READ = { "offset", "region", "length" },
  REGION_WRITE = { "offset", "region", "length" },
  DMA_READ = { "address", "dma_length" },
  DMA_WRITE = { "address", "dma_length" },
  VM_INTERRUPT = { "subindex" },
  DIRTY_PAGES = { "argsz", "flags" },
  REGION_WRITE_MULTI = { "nr_writes" },
  DEVICE_FEATURE = { "argsz", "feature_flags" },
  MIG_DATA_READ = { "argsz", "data_size" },
  MIG_DATA_WRITE = { "argsz", "data_size" },
}
local TABLES = { DMA_MAP = true, DMA_UNMAP = true } -- of the draft: no fixed structure, so shown as data

local field = {
  direction = ProtoField.uint8("vfio_user.direction", "Direction", base.DEC, DIRECTIONS),
  view = ProtoField.uint8("vfio_user.view", "View", base.DEC, VIEWS),
  dialect = ProtoField.uint8("vfio_user.dialect", "Dialect", base.DEC, DIALECTS),
  kind = ProtoField.uint8("vfio_user.kind", "Kind", base.DEC, KINDS),
  record = ProtoField.uint32("vfio_user.record", "Record"),
  request = ProtoField.uint32("vfio_user.request", "Answers record"),
  fd_kind = ProtoField.uint32("vfio_user.fd.kind", "Descriptor", base.DEC, FD_KINDS),
  fd_size = ProtoField.uint64("vfio_user.fd.size", "Size"),
  fd_inode = ProtoField.uint64("vfio_user.fd.inode", "Inode"),
  id = ProtoField.uint16("vfio_user.id", "Message ID"),
  command = ProtoField.uint16("vfio_user.command", "Command number"),
  name = ProtoField.string("vfio_user.name", "Command"),
  msg_size = ProtoField.uint32("vfio_user.message_size", "Message size"),
  msg_flags = ProtoField.uint32("vfio_user.message_flags", "Message flags", base.HEX),
  reply = ProtoField.bool("vfio_user.reply", "Reply"),
  no_reply = ProtoField.bool("vfio_user.no_reply", "No reply wanted"),
  failed = ProtoField.bool("vfio_user.failed", "Error"),
  errno = ProtoField.uint32("vfio_user.errno", "Errno"),
  feature = ProtoField.uint32("vfio_user.feature", "Feature", base.DEC, FEATURES),
  state = ProtoField.uint32("vfio_user.state", "Migration state", base.DEC, STATES),
  json = ProtoField.string("vfio_user.json", "Capabilities"),
  data = ProtoField.bytes("vfio_user.data", "Data"),
  value = ProtoField.uint64("vfio_user.value", "Value", base.HEX),
  note = ProtoField.string("vfio_user.note", "Note"),
}
local makers = { [1] = ProtoField.uint8, [2] = ProtoField.uint16, [4] = ProtoField.uint32, [8] = ProtoField.uint64 }
local of_layout = {}
local all = {}
for _, known in pairs(field) do all[#all + 1] = known end
for name, is in pairs(FIELDS) do
  of_layout[name] = makers[is[1]]("vfio_user." .. name, name, is[2] or base.DEC, is[3])
  all[#all + 1] = of_layout[name]
end
vfio_user.fields = all

local function add_descriptors(range, count, tree)
  for index = 0, count - 1 do
    local at = index * 20
    local branch = tree:add(field.fd_kind, range(at, 4))
    branch:add(field.fd_size, range(at + 4, 8))
    branch:add(field.fd_inode, range(at + 12, 8))
  end
end

-- The vectors that SET_IRQS is about, as one word.
local function vectors(start, count)
  if count == 0 then return "none" end
  return count == 1 and tostring(start) or (start .. "-" .. start + count - 1)
end

-- The data of a register access as a number, where it is one; returns the word for the info column.
local function add_value(range, tree)
  local size = range:len()
  if size ~= 1 and size ~= 2 and size ~= 4 and size ~= 8 then return nil end
  tree:add_le(field.value, range)
  return "= 0x" .. range:le_uint64():tohex():gsub("^0+(%x)", "%1")
end

-- The fixed structure of a command; returns where its tail starts and the words for the info column.
local function add_layout(name, dialect, payload, tree)
  local at, words = 0, {}
  for _, of in ipairs(LAYOUTS[name] or {}) do
    local size = FIELDS[of][1]
    if of == "dma_length" and dialect ~= 0 and dialect ~= 2 then size = 4 end
    if payload:len() < at + size then return at, words end
    local range = payload(at, size)
    if of == "dma_length" and size == 4 then
      tree:add_le(of_layout.length, range)
    else
      tree:add_le(of_layout[of], range)
    end
    if of == "region" then
      words[#words + 1] = REGIONS[range:le_uint()] or ("region " .. range:le_uint())
    elseif of == "offset" or of == "address" or of == "addr" then
      words[#words + 1] = "0x" .. range:le_uint64():tohex():gsub("^0+(%x)", "%1")
    elseif of == "irq" then
      words[#words + 1] = IRQS[range:le_uint()] or ("irq " .. range:le_uint())
    elseif of == "start" then
      words[#words + 1] = vectors(range:le_uint(), payload:len() >= at + 8 and payload(at + 4, 4):le_uint() or 0)
    end
    at = at + size
  end
  return at, words
end

local function add_feature(payload, tree)
  if payload:len() < 8 then return 8, {} end
  local flags = payload(4, 4):le_uint()
  local number = bit.band(flags, 0xFFFF)
  tree:add(field.feature, payload(4, 2), number)
  local words = { FEATURES[number] or ("feature " .. number) }
  if number == 2 and payload:len() >= 12 then
    tree:add_le(field.state, payload(8, 4))
    words[#words + 1] = STATES[payload(8, 4):le_uint()]
    return 16, words
  end
  return 8, words
end

local function add_message(message, dialect, pinfo, tree)
  if message:len() < 16 then return end
  local number, flags = message(2, 2):le_uint(), message(8, 4):le_uint()
  local name = (dialect == 1 and DRAFT or CURRENT)[number] or ("command " .. number)
  local is_reply, is_error = bit.band(flags, 0xF) == 1, bit.band(flags, 0x20) ~= 0
  tree:add_le(field.id, message(0, 2))
  tree:add_le(field.command, message(2, 2))
  tree:add(field.name, message(2, 2), name)
  tree:add_le(field.msg_size, message(4, 4))
  local branch = tree:add_le(field.msg_flags, message(8, 4))
  branch:add(field.reply, message(8, 1), is_reply)
  branch:add(field.no_reply, message(8, 1), bit.band(flags, 0x10) ~= 0)
  branch:add(field.failed, message(8, 1), is_error)
  tree:add_le(field.errno, message(12, 4))
  local words = { name }
  if is_reply then words[#words + 1] = is_error and ("error " .. message(12, 4):le_uint()) or "reply" end
  if message:len() > 16 then
    local payload = message(16)
    local at, found = 0, {}
    if not (dialect == 1 and TABLES[name]) then at, found = add_layout(name, dialect, payload:tvb(), tree) end
    if name == "DEVICE_FEATURE" then at, found = add_feature(payload:tvb(), tree) end
    for _, word in ipairs(found) do words[#words + 1] = word end
    if payload:len() > at then
      local kind = name == "VERSION" and field.json or field.data
      tree:add(kind, payload(at))
      if name == "REGION_READ" or name == "REGION_WRITE" then words[#words + 1] = add_value(payload(at), tree) end
    end
  end
  pinfo.cols.info = table.concat(words, " ")
end

function vfio_user.dissector(buffer, pinfo, root)
  if buffer:len() < 20 or buffer(0, 4):string() ~= "VFUP" then return 0 end
  pinfo.cols.protocol = "vfio-user"
  local direction, dialect, kind, count = buffer(5, 1):uint(), buffer(7, 1):uint(), buffer(8, 1):uint(), buffer(9, 1):uint()
  pinfo.cols.src = direction == 0 and "client" or "server"
  pinfo.cols.dst = direction == 0 and "server" or "client"
  local tree = root:add(vfio_user, buffer())
  tree:add(field.direction, buffer(5, 1))
  tree:add(field.view, buffer(6, 1))
  tree:add(field.dialect, buffer(7, 1))
  tree:add(field.kind, buffer(8, 1))
  tree:add(field.record, buffer(12, 4))
  if buffer(16, 4):uint() ~= 0 then tree:add(field.request, buffer(16, 4)) end
  local start = 20 + count * 20
  if buffer:len() < start then return buffer:len() end
  if count > 0 then add_descriptors(buffer(20, count * 20), count, tree) end
  if buffer:len() == start then return buffer:len() end
  local body = buffer(start)
  if kind == 2 then
    add_message(body:tvb(), dialect, pinfo, tree)
  elseif kind == 4 then
    tree:add(field.note, body)
    pinfo.cols.info = body:string()
  else
    tree:add(field.data, body)
    pinfo.cols.info = body:len() .. " bytes that are no message"
  end
  return buffer:len()
end

DissectorTable.get("wtap_encap"):add(wtap.USER0, vfio_user)
