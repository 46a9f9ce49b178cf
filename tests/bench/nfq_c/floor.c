/* The floor: libnetfilter_queue as its own example uses it, accepts every packet with a mark and looks at none.
 * `floor QUEUE MARK`. GSO and fail-open as ours. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <libnetfilter_queue/libnetfilter_queue.h>

static uint32_t mark;

static int take(struct nfq_q_handle *queue, struct nfgenmsg *message, struct nfq_data *packet, void *unused) {
    struct nfqnl_msg_packet_hdr *head = nfq_get_msg_packet_hdr(packet);
    (void)message; (void)unused;
    return nfq_set_verdict2(queue, ntohl(head->packet_id), NF_ACCEPT, mark, 0, NULL);
}

int main(int argc, char **argv) {
    static char buffer[65536];
    if (argc < 3) return 2;
    mark = strtoul(argv[2], 0, 0);
    struct nfq_handle *handle = nfq_open();
    struct nfq_q_handle *queue = handle ? nfq_create_queue(handle, atoi(argv[1]), take, NULL) : NULL;
    if (!queue || nfq_set_mode(queue, NFQNL_COPY_PACKET, 3800) < 0) { perror("floor"); return 1; }
    nfq_set_queue_maxlen(queue, 4096);
    nfq_set_queue_flags(queue, NFQA_CFG_F_GSO | NFQA_CFG_F_FAIL_OPEN, NFQA_CFG_F_GSO | NFQA_CFG_F_FAIL_OPEN);
    int fd = nfq_fd(handle);
    for (;;) {
        ssize_t got = recv(fd, buffer, sizeof buffer, 0);
        if (got > 0) nfq_handle_packet(handle, buffer, got);
        else if (errno != ENOBUFS && errno != EINTR) return 1;
    }
}
