/*
 * Times register accesses against a vfio-user server (current dialect), from the outside and with little of its own.
 *
 *   region_client SOCKET REGION OFFSET ROUND_TRIPS BURSTS [MAPS]
 *
 * First it maps so many pages of DMA memory, none beside another, without a descriptor.
 * Prints one line of JSON: nanoseconds per REGION_READ round trip, per REGION_WRITE round trip (medians), round trips
 * per second over the whole of both, and posted writes per second over bursts of 64 posted writes that end in a read.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { VERSION = 1, DMA_MAP = 2, REGION_READ = 9, REGION_WRITE = 10, NO_REPLY = 0x10, BURST = 64, WIDTH = 4 };

struct header {
    uint16_t id, command;
    uint32_t size, flags, error;
};

struct access {
    struct header header;
    uint64_t offset;
    uint32_t region, count;
    uint32_t value;
} __attribute__((packed));

static int peer;

static void fail(const char *what)
{
    fprintf(stderr, "region_client: %s: %s\n", what, strerror(errno));
    exit(2);
}

static void send_all(const void *data, size_t size)
{
    if (send(peer, data, size, MSG_NOSIGNAL) != (ssize_t)size)
        fail("send");
}

static void receive(void *data, size_t size)
{
    for (size_t have = 0; have < size;) {
        ssize_t count = recv(peer, (char *)data + have, size - have, 0);
        if (count <= 0)
            fail("recv");
        have += count;
    }
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return (left > right) - (left < right);
}

static void negotiate(void)
{
    static const char json[] = "{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576,"
                               "\"pgsizes\":4096,\"max_dma_maps\":65535}}";
    struct {
        struct header header;
        uint16_t major, minor;
        char json[sizeof json];
    } __attribute__((packed)) proposal = {{1, VERSION, sizeof proposal, 0, 0}, 0, 0, ""};
    char reply[4096];
    struct header header;

    memcpy(proposal.json, json, sizeof json);
    send_all(&proposal, sizeof proposal);
    receive(&header, sizeof header);
    if (header.flags != 1 || header.size > sizeof reply)
        fail("VERSION was refused");
    receive(reply, header.size - sizeof header);
}

static void check(struct header header)
{
    if (header.flags != 1) {
        fprintf(stderr, "region_client: command %u answered with flags %#x, errno %u\n", header.command,
                header.flags, header.error);
        exit(2);
    }
}

static void map_pages(long count)
{
    struct {
        struct header header;
        uint32_t argsz, flags;
        uint64_t offset, address, size;
    } __attribute__((packed)) map = {.argsz = 32, .flags = 3, .size = 4096};
    struct header reply;

    for (long i = 0; i < count; i++) {
        map.header = (struct header){i, DMA_MAP, sizeof map, 0, 0};
        map.address = 2 * 4096 * i;
        send_all(&map, sizeof map);
        receive(&reply, sizeof reply);
        check(reply);
    }
}

static uint64_t read_once(struct access *request)
{
    struct access reply;
    uint64_t begin = now();
    request->header = (struct header){request->header.id + 1, REGION_READ, 32, 0, 0};
    send_all(request, 32);
    receive(&reply, sizeof reply);
    check(reply.header);
    return now() - begin;
}

static uint64_t write_once(struct access *request)
{
    struct access reply;
    uint64_t begin = now();
    request->header = (struct header){request->header.id + 1, REGION_WRITE, sizeof *request, 0, 0};
    request->value++;
    send_all(request, sizeof *request);
    receive(&reply, 32);
    check(reply.header);
    return now() - begin;
}

static uint64_t burst(struct access *request)
{
    struct access writes[BURST];
    uint64_t begin = now();
    for (int i = 0; i < BURST; i++) {
        writes[i] = *request;
        writes[i].header = (struct header){request->header.id + 1 + i, REGION_WRITE, sizeof *writes, NO_REPLY, 0};
        writes[i].value = i;
    }
    request->header.id += BURST;
    send_all(writes, sizeof writes);
    read_once(request);
    return now() - begin;
}

static uint64_t median(uint64_t (*once)(struct access *), struct access *request, long count)
{
    uint64_t *times = calloc(count, sizeof *times), middle;
    for (long i = 0; i < count; i++)
        times[i] = once(request);
    qsort(times, count, sizeof *times, ascending);
    middle = times[count / 2];
    free(times);
    return middle;
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct access request = {.count = WIDTH};
    uint64_t begin;

    if (argc != 6 && argc != 7) {
        fprintf(stderr, "usage: region_client SOCKET REGION OFFSET ROUND_TRIPS BURSTS [MAPS]\n");
        return 2;
    }
    strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
    request.region = atoi(argv[2]);
    request.offset = strtoull(argv[3], NULL, 0);
    peer = socket(AF_UNIX, SOCK_STREAM, 0);
    if (peer < 0 || connect(peer, (struct sockaddr *)&address, sizeof address))
        fail(argv[1]);
    negotiate();
    map_pages(argc == 7 ? atol(argv[6]) : 0);
    median(read_once, &request, 500);
    begin = now();
    printf("{\"read_ns\": %llu, ", (unsigned long long)median(read_once, &request, atol(argv[4])));
    printf("\"write_ns\": %llu, ", (unsigned long long)median(write_once, &request, atol(argv[4])));
    printf("\"trips_per_second\": %.0f, ", 2 * atol(argv[4]) * 1e9 / (now() - begin));
    printf("\"posted_per_second\": %.0f}\n", BURST * 1e9 / median(burst, &request, atol(argv[5])));
    return 0;
}
