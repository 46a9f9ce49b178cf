/* New connections as fast as they go. `load serve ADDRESS PORT` and
 * `load run ADDRESS PORT FILE SECONDS PARALLEL PIECES KINDS NAME FRESH`: connect, send one of FILE's KINDS equal parts (in
 * PIECES segments), wait for the answer, close by reset (no TIME_WAIT, so ports do not run out). Which part, says Zipf's
 * law: the n-th is taken with a frequency of 1/n. One in FRESH (0: none) says a name that was never there before: seven
 * letters from octet NAME on are other ones. With an empty FILE a connection is done when it is there. Prints JSON:
 * connections, seconds, failed, set-up and request times in microseconds. One thread, epoll. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST 1024
static struct sockaddr_in peer;
static int poll_fd;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void watch(int fd, unsigned what, unsigned long tag, int how) {
    struct epoll_event e = {.events = what, .data.u64 = tag};
    epoll_ctl(poll_fd, how, fd, &e);
}

static void serve(void) {
    static char buffer[65536];
    struct epoll_event ready[256];
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&peer, sizeof peer) || listen(listener, 4096)) { perror("listen"); exit(1); }
    poll_fd = epoll_create1(0);
    watch(listener, EPOLLIN, listener, EPOLL_CTL_ADD);
    for (;;) {
        int count = epoll_wait(poll_fd, ready, 256, -1);
        for (int i = 0; i < count; i++) {
            int fd = (int)ready[i].data.u64;
            if (fd == listener) {
                int made;
                while ((made = accept4(listener, 0, 0, SOCK_NONBLOCK)) >= 0) watch(made, EPOLLIN, made, EPOLL_CTL_ADD);
                continue;
            }
            /* The hello's own length says when it is whole: octets 3 and 4 of its record. */
            ssize_t got = recv(fd, buffer, sizeof buffer, MSG_PEEK);
            if (got <= 0) { close(fd); continue; }
            if (buffer[0] == 0x16 && got < 5 + ((unsigned char)buffer[3] << 8 | (unsigned char)buffer[4])) continue;
            (void)!read(fd, buffer, sizeof buffer);
            send(fd, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 38, MSG_NOSIGNAL);
        }
    }
}

#define PLAN 65536
static unsigned short plan[PLAN];
static unsigned long seed = 88172645463325252UL;

static unsigned long any(void) { /* xorshift64 */
    seed ^= seed << 13; seed ^= seed >> 7; seed ^= seed << 17;
    return seed;
}

static void make_plan(int kinds) {
    static double sums[PLAN];
    double sum = 0;
    for (int i = 0; i < kinds; i++) sums[i] = sum += 1.0 / (i + 1);
    for (int i = 0; i < PLAN; i++) {
        double at = (any() >> 11) / 9007199254740992.0 * sum;
        int low = 0, high = kinds - 1;
        while (low < high) { int middle = (low + high) / 2; if (sums[middle] > at) high = middle; else low = middle + 1; }
        plan[i] = low;
    }
}

static void freshen(char *name) {
    unsigned long value = any();
    for (int i = 0; i < 7; i++, value /= 26) name[i] = 'a' + value % 26;
}

struct client { int fd, state; double began, sent; };
static int by_size(const void *a, const void *b) {
    double d = *(const double *)a - *(const double *)b;
    return d < 0 ? -1 : d > 0;
}

int main(int argc, char **argv) {
    static struct client clients[MOST];
    static char data[1 << 21], answer[4096], changed[8192];
    static double whole[1 << 20], request[1 << 20];
    struct epoll_event ready[256];
    signal(SIGPIPE, SIG_IGN);
    if (argc < 4) return 2;
    peer = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(argv[3]))};
    inet_pton(AF_INET, argv[2], &peer.sin_addr);
    if (!strcmp(argv[1], "serve")) serve();
    if (argc < 11) return 2;
    FILE *file = fopen(argv[4], "rb");
    if (!file) { perror(argv[4]); return 1; }
    int kinds = atoi(argv[8]);
    unsigned next = 0;
    size_t size = fread(data, 1, sizeof data, file) / kinds;
    size_t name_at = atoi(argv[9]);
    int fresh = atoi(argv[10]);
    seed ^= (unsigned long)(now_s() * 1e9) << 8 ^ (unsigned long)getpid() << 48;
    make_plan(kinds);
    double seconds = atof(argv[5]);
    int parallel = atoi(argv[6]), pieces = atoi(argv[7]), one = 1;
    struct linger hard = {1, 0};
    long done = 0, failed = 0, asked = 0;
    poll_fd = epoll_create1(0);
    double begin = now_s(), end = begin + seconds, now;
    for (int i = 0; i < parallel; i++) clients[i].fd = -1;
    while ((now = now_s()) < end) {
        for (int i = 0; i < parallel; i++) {
            struct client *c = &clients[i];
            if (c->fd >= 0) {
                if (now - c->began > 2) { failed++; close(c->fd); c->fd = -1; }
                continue;
            }
            c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
            setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
            setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            c->began = now_s();
            c->state = 0;
            if (connect(c->fd, (struct sockaddr *)&peer, sizeof peer) && errno != EINPROGRESS) {
                failed++; close(c->fd); c->fd = -1; continue;
            }
            watch(c->fd, EPOLLOUT, i, EPOLL_CTL_ADD);
        }
        int count = epoll_wait(poll_fd, ready, 256, 100);
        for (int i = 0; i < count; i++) {
            struct client *c = &clients[ready[i].data.u64];
            if (c->state == 0 && size) {
                const char *part = data + size * plan[next++ % PLAN];
                if (fresh && any() % fresh == 0) {
                    memcpy(changed, part, size);
                    freshen(changed + name_at);
                    part = changed;
                }
                c->sent = now_s();
                asked++;
                for (int p = 0; p < pieces; p++) {
                    size_t from = size * p / pieces, to = size * (p + 1) / pieces;
                    (void)!send(c->fd, part + from, to - from, MSG_NOSIGNAL);
                }
                c->state = 1;
                watch(c->fd, EPOLLIN, ready[i].data.u64, EPOLL_CTL_MOD);
                continue;
            }
            int error = 0;
            socklen_t length = sizeof error;
            if (!size) { getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length); c->sent = c->began; }
            ssize_t got = size ? read(c->fd, answer, sizeof answer) : !error;
            if (got > 0) {
                now = now_s();
                if (done < 1 << 20) { whole[done] = now - c->began; request[done] = now - c->sent; }
                done++;
            } else failed++;
            close(c->fd);
            c->fd = -1;
        }
    }
    double spent = now_s() - begin;
    long kept = done < 1 << 20 ? done : 1 << 20;
    if (!kept) { whole[0] = request[0] = 0; kept = 1; }
    qsort(whole, kept, sizeof *whole, by_size);
    qsort(request, kept, sizeof *request, by_size);
    printf("{\"connections\": %ld, \"seconds\": %f, \"failed\": %ld, \"p50_us\": %.1f, \"p99_us\": %.1f, "
           "\"request_p50_us\": %.1f, \"request_p99_us\": %.1f, \"asked\": %ld}\n", done, spent, failed, whole[kept / 2] * 1e6,
           whole[kept * 99 / 100] * 1e6, request[kept / 2] * 1e6, request[kept * 99 / 100] * 1e6, asked);
    return 0;
}
