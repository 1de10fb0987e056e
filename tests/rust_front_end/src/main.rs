//! A driver of a vhost-user disk on rust-vmm's `vhost`: `rust-front-end SOCKET table|slots`.
//!
//! Asks for an answer to every message, writes a pattern by each queue and reads it back, stops each ring and goes on
//! where it was. It prints what it has found; a status other than 0 says that something was not as it has to be.

use std::error::Error;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::{copy_nonoverlapping, null_mut, read_volatile, write_volatile};
use std::sync::atomic::{fence, Ordering};

use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

type Outcome<T> = Result<T, Box<dyn Error>>;

const VERSION_1: u64 = 1 << 32;
const BLK_MQ: u64 = 1 << 12;
const BLK_FLUSH: u64 = 1 << 9;

const MEMORY: usize = 4 << 20;
const RING: usize = 64 << 10; // of each queue: its ring, a header, a status, and data behind them
const SIZE: usize = 64;
const DATA: usize = 16 << 10;
const LENGTH: usize = 32 << 10;

const PATIENCE: i32 = 20_000; // ms

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;

/// Memory that is shared: this process has it where the back-end is told that it is.
struct Memory {
    file: File,
    base: *mut u8,
}

impl Memory {
    fn new() -> Outcome<Memory> {
        // SAFETY: a new descriptor, and a new mapping that is never unmapped
        unsafe {
            let fd = libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC);
            if fd < 0 || libc::ftruncate(fd, MEMORY as i64) != 0 {
                return Err(std::io::Error::last_os_error().into());
            }
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let base = libc::mmap(null_mut(), MEMORY, protection, libc::MAP_SHARED, fd, 0);
            if base == libc::MAP_FAILED {
                return Err(std::io::Error::last_os_error().into());
            }
            Ok(Memory { file: File::from_raw_fd(fd), base: base.cast() })
        }
    }

    fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: self.base as u64,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    fn put<T>(&self, at: usize, value: T) {
        assert!(at + size_of::<T>() <= MEMORY);
        // SAFETY: within the mapping; a back-end may look at any time
        unsafe { write_volatile(self.base.add(at).cast(), value) }
    }

    fn get<T>(&self, at: usize) -> T {
        assert!(at + size_of::<T>() <= MEMORY);
        // SAFETY: as above
        unsafe { read_volatile(self.base.add(at).cast()) }
    }

    fn fill(&self, at: usize, data: &[u8]) {
        assert!(at + data.len() <= MEMORY);
        // SAFETY: as above; no request has these bytes
        unsafe { copy_nonoverlapping(data.as_ptr(), self.base.add(at), data.len()) }
    }

    fn bytes(&self, at: usize, length: usize) -> Vec<u8> {
        (at..at + length).map(|place| self.get(place)).collect()
    }
}

/// A split ring, at `at` in memory.
struct Queue<'a> {
    memory: &'a Memory,
    index: usize,
    at: usize,
    made: u16,
    seen: u16,
    kick: EventFd,
    call: EventFd,
}

impl<'a> Queue<'a> {
    fn new(memory: &'a Memory, index: usize) -> Outcome<Queue<'a>> {
        let (kick, call) = (EventFd::new(0)?, EventFd::new(0)?);
        Ok(Queue { memory, index, at: index * RING, made: 0, seen: 0, kick, call })
    }

    fn available(&self) -> usize {
        self.at + 16 * SIZE
    }

    fn used(&self) -> usize {
        self.at + 0x1000
    }

    fn start(&self, to: &mut Frontend, base: u16) -> Outcome<()> {
        let address = |place: usize| self.memory.base as u64 + place as u64;
        to.set_vring_num(self.index, SIZE as u16)?;
        to.set_vring_base(self.index, base)?;
        let config = VringConfigData {
            queue_max_size: SIZE as u16,
            queue_size: SIZE as u16,
            flags: 0,
            desc_table_addr: address(self.at),
            used_ring_addr: address(self.used()),
            avail_ring_addr: address(self.available()),
            log_addr: None,
        };
        to.set_vring_addr(self.index, &config)?;
        to.set_vring_call(self.index, &self.call)?;
        to.set_vring_kick(self.index, &self.kick)?;
        to.set_vring_enable(self.index, true)?;
        Ok(())
    }

    fn describe(&self, index: usize, at: usize, length: usize, flags: u16) {
        let place = self.at + 16 * index;
        self.memory.put(place, at as u64);
        self.memory.put(place + 8, length as u32);
        self.memory.put(place + 12, flags);
        self.memory.put(place + 14, index as u16 + 1);
    }

    /// Does one request, and waits for it; its status.
    fn request(&mut self, kind: u32, sector: u64, length: usize) -> Outcome<u8> {
        const NEXT: u16 = 1;
        const DEVICE_WRITES: u16 = 2;
        let (header, status, data) = (self.at + 0x2000, self.at + 0x2010, self.at + DATA);
        self.memory.put(header, kind);
        self.memory.put(header + 4, 0u32);
        self.memory.put(header + 8, sector);
        self.memory.put(status, 0xffu8);
        self.describe(0, header, 16, NEXT);
        if length > 0 {
            self.describe(1, data, length, NEXT | if kind == READ { DEVICE_WRITES } else { 0 });
        }
        let last = if length > 0 { 2 } else { 1 };
        self.describe(last, status, 1, DEVICE_WRITES);
        self.memory.put(self.available() + 4 + 2 * (self.made as usize % SIZE), 0u16);
        self.made = self.made.wrapping_add(1);
        fence(Ordering::SeqCst);
        self.memory.put(self.available() + 2, self.made);
        fence(Ordering::SeqCst);
        self.kick.write(1)?;
        while self.memory.get::<u16>(self.used() + 2) == self.seen {
            self.wait_call()?;
            fence(Ordering::SeqCst);
        }
        self.seen = self.seen.wrapping_add(1);
        Ok(self.memory.get(status))
    }

    /// By poll: a back-end may have made the descriptor one that does not wait (qemu-storage-daemon 11.1.3 does).
    fn wait_call(&self) -> Outcome<()> {
        let mut event = libc::pollfd { fd: self.call.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure, for the time of the call
        match unsafe { libc::poll(&mut event, 1, PATIENCE) } {
            1 => self.call.read().map(|_| ()).map_err(Into::into),
            _ => Err(format!("nobody calls for queue {}", self.index).into()),
        }
    }

    fn must(&mut self, kind: u32, sector: u64, length: usize) -> Outcome<()> {
        match self.request(kind, sector, length)? {
            0 => Ok(()),
            status => Err(format!("request {kind} of queue {} has status {status}", self.index).into()),
        }
    }

    fn data(&self) -> Vec<u8> {
        self.memory.bytes(self.at + DATA, LENGTH)
    }
}

fn pattern(seed: usize) -> Vec<u8> {
    (0..LENGTH).map(|place| (place / 512 * 7 + place % 251 + seed) as u8).collect()
}

fn drive(path: &str, by_slots: bool) -> Outcome<()> {
    let mut to = Frontend::connect(path, 1)?;
    to.set_owner()?;
    let offered = to.get_features()?;
    let wanted = VERSION_1 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | BLK_MQ | BLK_FLUSH;
    to.set_features(offered & wanted)?;
    let protocol = to.get_protocol_features()?;
    let known = VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::RESET_DEVICE;
    to.set_protocol_features(protocol & known)?;
    to.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let queues = to.get_queue_num()? as usize;
    let (_, config) = to.get_config(0, 8, VhostUserConfigFlags::WRITABLE, &[0; 8])?;
    println!("queues {queues}");
    println!("sectors {}", u64::from_le_bytes(config[..8].try_into()?));

    let memory = Memory::new()?;
    if by_slots {
        println!("slots {}", to.get_max_mem_slots()?);
        to.add_mem_region(&memory.region())?;
    } else {
        to.set_mem_table(&[memory.region()])?;
    }
    for index in 0..queues {
        let mut queue = Queue::new(&memory, index)?;
        let sector = (index * LENGTH / 512) as u64;
        queue.start(&mut to, 0)?;
        memory.fill(queue.at + DATA, &pattern(index));
        queue.must(WRITE, sector, LENGTH)?;
        queue.must(FLUSH, 0, 0)?;
        to.set_vring_enable(index, false)?;
        let base = to.get_vring_base(index)?;
        if base != 2 {
            return Err(format!("queue {index} would go on at {base} after two requests").into());
        }
        queue.start(&mut to, base as u16)?;
        memory.fill(queue.at + DATA, &[0; LENGTH]);
        queue.must(READ, sector, LENGTH)?;
        if queue.data() != pattern(index) {
            return Err(format!("queue {index} reads what it has not written").into());
        }
        to.get_vring_base(index)?;
    }
    if protocol.contains(VhostUserProtocolFeatures::RESET_DEVICE) {
        to.reset_device()?;
    }
    if by_slots {
        to.remove_mem_region(&memory.region())?;
    }
    println!("read back {}", queues * LENGTH);
    Ok(())
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.as_slice() {
        [_, path, how] if how == "table" || how == "slots" => drive(path, how == "slots"),
        _ => Err("SOCKET table|slots".into()),
    }
}
