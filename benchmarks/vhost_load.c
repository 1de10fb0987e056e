/*
 * Requests to a vhost-user disk, by libblkio, without a guest: so many outstanding, for so many seconds.
 *
 *     vhost_load SOCKET read|write BYTES DEPTH SECONDS
 *
 * Offsets are random multiples of BYTES. All blocks are read or written once before, so that the page cache has them,
 * dirty where they are written. Printed: requests, seconds, and the CPU time that this program needed.
 */
#include <blkio.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

enum { MAX_DEPTH = 128 };

static void check(int result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "%s: %s: %s\n", what, strerror(-result), blkio_get_error_msg());
        exit(1);
    }
}

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

static double cpu(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

/* Requests of `size` bytes, `depth` of them outstanding: until `end`, or once for each block where that is 0. */
static uint64_t load(struct blkio *disk, char *memory, uint64_t capacity, size_t size, int depth, int writes, double end)
{
    static uint64_t state = 88172645463325252; /* xorshift64 */
    struct blkioq *queue = blkio_get_queue(disk, 0);
    struct blkio_completion done[MAX_DEPTH];
    char *free[MAX_DEPTH];
    uint64_t blocks = capacity / size, begun = 0, ended = 0;
    int room = depth, more = 1;

    for (int each = 0; each < depth; each++)
        free[each] = memory + each * size;
    while (more || room < depth) {
        for (; room && more; begun++) {
            char *buffer = free[--room];
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            uint64_t at = (end ? state % blocks : begun) * size;
            if (writes)
                blkioq_write(queue, at, buffer, size, buffer, 0);
            else
                blkioq_read(queue, at, buffer, size, buffer, 0);
            more = end ? more : begun + 1 < blocks;
        }
        int count = blkioq_do_io(queue, done, 1, depth - room, NULL);
        check(count, "do_io");
        for (int each = 0; each < count; each++) {
            check(done[each].ret, "a request");
            free[room++] = done[each].user_data;
        }
        ended += count;
        more = more && (!end || now() < end);
    }
    return ended;
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "vhost_load SOCKET read|write BYTES DEPTH SECONDS\n");
        return 2;
    }
    int writes = !strcmp(argv[2], "write");
    size_t size = strtoul(argv[3], NULL, 10);
    int depth = atoi(argv[4]);
    double seconds = atof(argv[5]);
    if (depth < 1 || depth > MAX_DEPTH || !size)
        return 2;

    struct blkio *disk;
    struct blkio_mem_region region;
    uint64_t capacity;
    check(blkio_create("virtio-blk-vhost-user", &disk), "create");
    check(blkio_set_str(disk, "path", argv[1]), "path");
    check(blkio_connect(disk), "connect");
    check(blkio_start(disk), "start");
    check(blkio_get_uint64(disk, "capacity", &capacity), "capacity");
    check(blkio_alloc_mem_region(disk, &region, size * depth), "memory");
    check(blkio_map_mem_region(disk, &region), "map");
    memset(region.addr, 0xA5, size * depth);

    load(disk, region.addr, capacity, size, depth, writes, 0);
    double begun = now(), used = cpu();
    uint64_t ended = load(disk, region.addr, capacity, size, depth, writes, begun + seconds);
    printf("%llu %.6f %.6f\n", (unsigned long long)ended, now() - begun, cpu() - used);
    blkio_destroy(&disk);
    return 0;
}
