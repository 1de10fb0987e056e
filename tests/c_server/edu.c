/*
 * A vfio-user server in plain C, which shares nothing with this project: edu's identification, liveness, factorial and
 * causes of interrupts, polled, without DMA. Written after docs/interop/vfio-user.rst and docs/specs/edu.rst of QEMU. It
 * serves one client after the other at the path that is its argument.
 *
 * Built with VECTORS=1 it has an interrupt, of MSI-X; with STALE=N every N-th read of the causes is of the value before,
 * with LOST=N every N-th interrupt is lost, and with DRAFT=1 it is as it was first written: it agrees on any version, and
 * describes itself to whoever asks in too few bytes.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "proposal.h"

#ifndef VECTORS
#define VECTORS 0
#endif
#ifndef STALE
#define STALE 0
#endif
#ifndef LOST
#define LOST 0
#endif
#ifndef DRAFT
#define DRAFT 0
#endif

enum { VERSION = 1, DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION, GET_REGION_FDS, GET_IRQ, SET_IRQS, READ, WRITE, RESET = 13 };
enum { REPLY = 1, TYPE = 15, NO_REPLY = 1 << 4, FAILED = 1 << 5 };
enum { REGIONS = 9, BAR0 = 0, CONFIG = 7, IRQS = 5, BAR_SIZE = 1 << 20, CONFIG_SIZE = 256, MOST = 4096, MOST_ARGSZ = 1 << 20 };
enum { MSIX = 2, NONE = 1, BOOL = 2, EVENTFD = 4, MASK = 8, UNMASK = 16, TRIGGER = 32 };

struct header { uint16_t id, command; uint32_t size, flags, error; };
struct info { uint32_t argsz, flags, regions, irqs; };
struct region { uint32_t argsz, flags, index, cap_offset; uint64_t size, offset; };
struct region_fds { uint32_t argsz, flags, index, count; };
struct irq { uint32_t argsz, flags, index, count; };
struct irq_set { uint32_t argsz, flags, index, start, count; };
struct access { uint64_t offset; uint32_t region, count; };

static union { uint8_t bytes[MOST]; struct header header; } in, out;
static uint8_t config[CONFIG_SIZE];
static uint32_t inverted, result, status, causes, seen, reads, raised;
static const uint32_t vectors = VECTORS;
static int eventfd = -1, received = -1, came; /* the vector's; the last that came with a message, of so many */

/* What a command has at least behind its header. From GET_INFO to SET_IRQS it begins with argsz, which is no less. */
static const uint32_t least[] = {
    [DMA_MAP] = 1, [DMA_UNMAP] = 1, /* without DMA nothing in them is looked at */
    [GET_INFO] = DRAFT ? 0 : sizeof(struct info), [GET_REGION] = sizeof(struct region),
    [GET_REGION_FDS] = sizeof(struct region_fds), [GET_IRQ] = sizeof(struct irq), [SET_IRQS] = sizeof(struct irq_set),
    [READ] = sizeof(struct access), [WRITE] = sizeof(struct access),
};

static const uint8_t fresh_config[CONFIG_SIZE] = {
    [0x00] = 0x34, 0x12, 0xe8, 0x11, [0x08] = 0x10, 0x00, 0xff, 0x00, [0x2c] = 0xf4, 0x1a, 0x00, 0x11,
};

static void reset(void)
{
    memcpy(config, fresh_config, sizeof config);
    inverted = result = status = causes = 0;
}

static uint32_t load(uint64_t offset)
{
    switch (offset) {
    case 0x00: return 0x010000ed;
    case 0x04: return inverted;
    case 0x08: return result;
    case 0x20: return status;
    case 0x24:
        reads++;
        if (!STALE || reads % (STALE + !STALE))
            seen = causes;
        return seen;
    default: return offset < 0x80 ? 0xffffffff : 0;
    }
}

static void interrupt(void)
{
    uint64_t one = 1;

    raised++;
    if (eventfd >= 0 && (!LOST || raised % (LOST + !LOST)) && write(eventfd, &one, sizeof one) != sizeof one)
        perror("eventfd");
}

static void store(uint64_t offset, uint32_t value)
{
    if (offset == 0x60) {
        causes |= value;
        interrupt();
    }
    if (offset == 0x64)
        causes &= ~value;
    if (offset == 0x04)
        inverted = ~value;
    if (offset == 0x20)
        status = value & 0x80;
    if (offset == 0x08) {
        result = value < 34 ? 1 : 0; /* 34! has 32 factors of two */
        for (uint32_t factor = 2; value < 34 && factor <= value; factor++)
            result *= factor;
    }
}

/* Only the command register and BAR 0 keep what is written. */
static void store_config(uint64_t offset, const uint8_t *data, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint64_t at = offset + i;
        if (at == 0x04 || at == 0x05 || at == 0x3c)
            config[at] = data[i];
        if (at >= 0x10 && at < 0x14)
            config[at] = data[i] & ((uint32_t)-BAR_SIZE >> 8 * (at - 0x10));
    }
}

static uint64_t region_size(uint32_t index)
{
    return index == BAR0 ? BAR_SIZE : index == CONFIG ? CONFIG_SIZE : 0;
}

static void listen_with(int fd)
{
    if (eventfd >= 0)
        close(eventfd);
    eventfd = fd;
}

/* `data` has the `size` bytes behind the request. */
static int set_irqs(const struct irq_set *set, const uint8_t *data, uint32_t size)
{
    uint32_t kind = set->flags & (NONE | BOOL | EVENTFD), action = set->flags & (MASK | UNMASK | TRIGGER);

    if ((kind != NONE && kind != BOOL && kind != EVENTFD) || (action != MASK && action != UNMASK && action != TRIGGER))
        return -EINVAL;
    if (set->index != MSIX || set->start >= vectors || set->count > vectors - set->start)
        return -EINVAL;
    if ((!set->count && (kind != NONE || action != TRIGGER)) || (kind == BOOL && size != set->count))
        return -EINVAL;
    if (came && (kind != EVENTFD || (uint32_t)came != set->count))
        return -EINVAL;
    if (action != TRIGGER)
        return 0;
    if (kind == EVENTFD || !set->count) {
        listen_with(received);
        received = -1;
    } else if (kind == NONE || *data == 1) {
        interrupt();
    }
    return 0;
}

/* What VERSION is answered: as `answer`. It is the first message, and no other is. */
static int negotiate(const uint8_t *asked, uint32_t size, uint8_t *reply)
{
    static const char said[] = "{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1024}}";
    uint16_t numbers[2] = { 0 };

    if (size >= sizeof numbers)
        memcpy(numbers, asked, sizeof numbers);
    if (size < sizeof numbers || (numbers[0] != 0 && !DRAFT))
        return -EINVAL;
    if (size > sizeof numbers && (asked[size - 1] || !proposal_is_good((const char *)asked + sizeof numbers)))
        return -EINVAL;
    numbers[1] = 0; /* the minor version that everybody has */
    memcpy(reply, numbers, sizeof numbers);
    memcpy(reply + sizeof numbers, said, sizeof said);
    return sizeof numbers + sizeof said;
}

/* What is answered: the bytes behind the header, or a negative errno. `size` is of what was asked. */
static int answer(int command, const uint8_t *asked, uint32_t size, uint8_t *reply)
{
    struct access access;
    uint32_t argsz = 0;

    memcpy(reply, asked, size);
    memcpy(&argsz, asked, size < sizeof argsz ? size : sizeof argsz);
    if ((size_t)command < sizeof least / sizeof *least && size < least[command])
        return -EINVAL;
    if (command >= GET_INFO && command <= SET_IRQS && argsz < least[command])
        return -EINVAL;
    switch (command) {
    case DMA_MAP:
        return 0;
    case DMA_UNMAP:
        return size;
    case GET_INFO: {
        struct info info = { sizeof info, 1 | 2, REGIONS, IRQS };
        memcpy(reply, &info, sizeof info);
        return sizeof info;
    }
    case GET_REGION: {
        struct region region;
        memcpy(&region, asked, sizeof region);
        if (region.index >= REGIONS)
            return -EINVAL;
        region.size = region_size(region.index);
        region.flags = region.size ? 1 | 2 : 0;
        region.argsz = sizeof region;
        region.cap_offset = 0;
        region.offset = 0;
        memcpy(reply, &region, sizeof region);
        return sizeof region;
    }
    case GET_REGION_FDS: { /* no region has an eventfd for its writes */
        struct region_fds fds;
        memcpy(&fds, asked, sizeof fds);
        if (fds.argsz > MOST_ARGSZ || fds.flags || fds.count || !region_size(fds.index))
            return -EINVAL;
        fds.argsz = sizeof fds;
        memcpy(reply, &fds, sizeof fds);
        return sizeof fds;
    }
    case GET_IRQ: {
        struct irq irq;
        memcpy(&irq, asked, sizeof irq);
        if (irq.index >= IRQS)
            return -EINVAL;
        irq.argsz = sizeof irq;
        irq.count = irq.index == MSIX ? vectors : 0;
        irq.flags = irq.count ? 1 : 0; /* eventfd */
        memcpy(reply, &irq, sizeof irq);
        return sizeof irq;
    }
    case SET_IRQS: {
        struct irq_set set;
        memcpy(&set, asked, sizeof set);
        return set_irqs(&set, asked + sizeof set, size - sizeof set);
    }
    case READ:
    case WRITE:
        memcpy(&access, asked, sizeof access);
        if (access.count > 1024 || (command == WRITE && size - sizeof access != access.count))
            return -EINVAL;
        if (access.region == CONFIG && access.offset <= CONFIG_SIZE && access.count <= CONFIG_SIZE - access.offset) {
            if (command == READ)
                memcpy(reply + sizeof access, config + access.offset, access.count);
            else
                store_config(access.offset, asked + sizeof access, access.count);
        } else if (access.region == BAR0 && access.offset < BAR_SIZE && access.count <= 8) {
            uint32_t value = 0;
            if (command == READ) {
                value = load(access.offset);
                memset(reply + sizeof access, 0, access.count);
                memcpy(reply + sizeof access, &value, access.count < 4 ? access.count : 4);
            } else {
                memcpy(&value, asked + sizeof access, access.count < 4 ? access.count : 4);
                store(access.offset, value);
            }
        } else {
            return -EINVAL;
        }
        return sizeof access + (command == READ ? access.count : 0);
    case RESET:
        reset();
        return 0;
    default:
        return -EINVAL;
    }
}

static void take(int fd)
{
    if (received >= 0)
        close(received);
    received = fd;
    came = fd < 0 ? 0 : came + 1;
}

/* Whole messages only; of descriptors that come along the last is kept until the next message. 0: the client has gone. */
static int receive(int client, uint8_t *buffer, size_t wanted)
{
    union { char bytes[CMSG_SPACE(16 * sizeof(int))]; struct cmsghdr align; } control;

    while (wanted > 0) {
        struct iovec part = { buffer, wanted };
        struct msghdr message = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control,
        };
        ssize_t got = recvmsg(client, &message, MSG_CMSG_CLOEXEC);
        if (got <= 0)
            return 0;
        for (struct cmsghdr *each = CMSG_FIRSTHDR(&message); each; each = CMSG_NXTHDR(&message, each)) {
            int *fds = (int *)CMSG_DATA(each);
            for (size_t i = 0; i < (each->cmsg_len - CMSG_LEN(0)) / sizeof *fds; i++)
                take(fds[i]);
        }
        buffer += got;
        wanted -= (size_t)got;
    }
    return 1;
}

static void serve(int client)
{
    const size_t header = sizeof(struct header);
    int agreed = 0;

    while (receive(client, in.bytes, header)) {
        uint32_t size = in.header.size;
        if (size < header || size > MOST - 1024 || !receive(client, in.bytes + header, size - header))
            return;
        int first = !agreed && in.header.command == VERSION, command = (in.header.flags & TYPE) == 0;
        int length = -EINVAL;
        if (command && first)
            length = negotiate(in.bytes + header, size - (uint32_t)header, out.bytes + header);
        else if (command && agreed)
            length = answer(in.header.command, in.bytes + header, size - (uint32_t)header, out.bytes + header);
        agreed |= first && length >= 0;
        take(-1);
        if (in.header.flags & NO_REPLY && !first)
            continue;
        out.header = in.header;
        out.header.flags = REPLY | (length < 0 ? FAILED : 0);
        out.header.error = length < 0 ? (uint32_t)-length : 0;
        out.header.size = (uint32_t)header + (length < 0 ? 0 : (uint32_t)length);
        if (send(client, out.bytes, out.header.size, MSG_NOSIGNAL) != (ssize_t)out.header.size || !agreed)
            return;
    }
}

int main(int count, char **arguments)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (count != 2 || strlen(arguments[1]) >= sizeof address.sun_path) {
        fprintf(stderr, "usage: %s SOCKET\n", arguments[0]);
        return 2;
    }
    strcpy(address.sun_path, arguments[1]);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1)) {
        perror(arguments[1]);
        return 1;
    }
    reset();
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0)
            return 1;
        serve(client);
        listen_with(-1);
        close(client);
    }
}
