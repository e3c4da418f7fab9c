/* The floor of fanout.py in C: it sends the bytes of an event stream, made once, to each socket in turn.
 *
 * It obeys standard input as fanout_servers.py does; Its only argument is the size of a message. */

#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 20000, BACKLOG = 1024, ROOM = 1 << 20 };

static const char HEAD[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

static int sockets[MOST];
static int count;
static long number;
static char run[ROOM], chunk[ROOM + 32];

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void take(int listener) {
    char request[65536];
    int one = 1, connection = accept(listener, NULL, NULL);
    if (connection < 0) fail("accept");
    if (count == MOST) fail("too many subscribers");
    if (recv(connection, request, sizeof request, 0) < 0) fail("recv");
    if (send(connection, HEAD, strlen(HEAD), 0) < 0) fail("send");
    if (fcntl(connection, F_SETFL, O_NONBLOCK) < 0) fail("fcntl");
    if (setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) < 0) fail("setsockopt");
    sockets[count++] = connection;
}

/* "[number time ....]": what fanout_servers.payload makes. */
static int write_event(char *to, int size) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    number++;
    int data = sprintf(to, "data: [%08ld %019" PRId64 " ", number, now.tv_sec * INT64_C(1000000000) + now.tv_nsec);
    int end = (int)strlen("data: ") + size - 1;
    memset(to + data, '.', (size_t)(end - data));
    return end + sprintf(to + end, "]\nid: 0123456789-%ld\n\n", number);
}

static void publish(long messages, int size) {
    int length = 0;
    while (messages--) {
        if (length + size + 64 > ROOM) fail("too large a burst");
        length += write_event(run + length, size);
    }
    int total = sprintf(chunk, "%x\r\n", (unsigned)length);
    memcpy(chunk + total, run, (size_t)length);
    memcpy(chunk + total + length, "\r\n", 2);
    total += length + 2;
    for (int i = 0; i < count; i++)
        if (send(sockets[i], chunk, (size_t)total, MSG_NOSIGNAL) != total) fail("send");
}

static void obey(int size) {
    char line[256];
    ssize_t length = read(0, line, sizeof line - 1);
    if (length <= 0) _exit(0);
    line[length] = 0;
    if (!strncmp(line, "publish ", 8)) publish(atol(line + 8), size);
    else if (!strncmp(line, "subscribers", 11)) printf("%d\n", count);
    else fail("there is no such command");
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int size = argc > 1 ? atoi(argv[1]) : 100, listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, length) || listen(listener, BACKLOG)) fail("listen");
    if (getsockname(listener, (struct sockaddr *)&address, &length)) fail("getsockname");
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("%d\n", ntohs(address.sin_port));
    struct pollfd waiting[] = {{.fd = 0, .events = POLLIN}, {.fd = listener, .events = POLLIN}};
    for (;;) {
        if (poll(waiting, 2, -1) < 0) fail("poll");
        if (waiting[1].revents) take(listener);
        if (waiting[0].revents) obey(size);
    }
}
