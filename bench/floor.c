//go:build ignore

// The floor: the least that a program must do to bring bytes from a Unix socket to many
// WebSocket clients. What it costs is what the kernel charges; everything above it is a
// server's own doing.
//
//	floor ADDRESS PORT PATH THREADS
//
// It answers opening handshakes on ADDRESS:PORT and sends every client whatever bytes a
// publisher writes to the Unix socket PATH. The publisher writes finished frames, so there
// is nothing to parse: one recv, then one send per client. Clients are dealt to the threads
// in turn. Thread 0 accepts, reads the publisher, and hands the same bytes to the other
// threads over a socketpair each before it serves its own clients.
//
// It has no features. A request that does not come in one piece is refused, what clients
// send is thrown away, and a client that cannot take everything at once ends the program.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { MAX_FDS = 1 << 20, MAX_THREADS = 64, BATCH = 512 };

struct thread {
	int epoll;
	int source;   // where the bytes come from: the publisher, or thread 0
	int feed;     // thread 0's end of that socketpair
	int *clients; // dense, in no order; pages never touched cost nothing
	int count;
};

static struct thread threads[MAX_THREADS];
static int thread_count;
static int websocket_listener, publish_listener;

// place[fd] is 1 + the client's index in its thread's list, or 0 before its handshake.
static int place[MAX_FDS];

static void die(const char *format, ...)
{
	va_list list;
	va_start(list, format);
	fputs("floor: ", stderr);
	vfprintf(stderr, format, list);
	fputc('\n', stderr);
	va_end(list);
	_exit(1);
}

// SHA-1 of at most 119 bytes (FIPS 180-4, two blocks): a key of 24 bytes and the GUID are 60.
static void sha1(const uint8_t *data, size_t length, uint8_t digest[20])
{
	uint8_t block[128] = {0};
	size_t total = length + 9 <= 64 ? 64 : 128;
	uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};

	memcpy(block, data, length);
	block[length] = 0x80;
	for (int i = 0; i < 8; i++)
		block[total - 1 - i] = (uint8_t)((uint64_t)length * 8 >> (8 * i));
	for (size_t at = 0; at < total; at += 64) {
		uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
		for (int t = 0; t < 16; t++)
			w[t] = (uint32_t)block[at + 4 * t] << 24 | block[at + 4 * t + 1] << 16 |
			       block[at + 4 * t + 2] << 8 | block[at + 4 * t + 3];
		for (int t = 16; t < 80; t++) {
			uint32_t x = w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16];
			w[t] = x << 1 | x >> 31;
		}
		for (int t = 0; t < 80; t++) {
			uint32_t f, k;
			if (t < 20)
				f = (b & c) | (~b & d), k = 0x5a827999;
			else if (t < 40)
				f = b ^ c ^ d, k = 0x6ed9eba1;
			else if (t < 60)
				f = (b & c) | (b & d) | (c & d), k = 0x8f1bbcdc;
			else
				f = b ^ c ^ d, k = 0xca62c1d6;
			uint32_t next = (a << 5 | a >> 27) + f + e + k + w[t];
			e = d, d = c, c = b << 30 | b >> 2, b = a, a = next;
		}
		h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
	}
	for (int i = 0; i < 20; i++)
		digest[i] = (uint8_t)(h[i / 4] >> (24 - 8 * (i % 4)));
}

static void base64(const uint8_t *data, size_t length, char *out)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	for (size_t i = 0; i < length; i += 3) {
		size_t left = length - i;
		uint32_t v = (uint32_t)data[i] << 16 | (left > 1 ? data[i + 1] << 8 : 0) | (left > 2 ? data[i + 2] : 0);
		*out++ = digits[v >> 18];
		*out++ = digits[v >> 12 & 63];
		*out++ = left > 1 ? digits[v >> 6 & 63] : '=';
		*out++ = left > 2 ? digits[v & 63] : '=';
	}
	*out = 0;
}

static void forget(struct thread *t, int fd)
{
	if (place[fd]) {
		int at = place[fd] - 1, moved = t->clients[--t->count];
		t->clients[at] = moved;
		place[moved] = at + 1;
		place[fd] = 0;
	}
	close(fd);
}

// RFC 6455, section 4.2.2: the key and the GUID, hashed.
static void handshake(struct thread *t, int fd, char *request, ssize_t length)
{
	static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
	char text[24 + sizeof guid], accept[32], answer[256];
	uint8_t digest[20];

	request[length] = 0;
	char *key = strcasestr(request, "\r\nSec-WebSocket-Key: ");
	if (length < 4 || memcmp(request + length - 4, "\r\n\r\n", 4) || !key) {
		forget(t, fd);
		return;
	}
	memcpy(text, key + 21, 24);
	memcpy(text + 24, guid, sizeof guid);
	sha1((uint8_t *)text, 24 + sizeof guid - 1, digest);
	base64(digest, sizeof digest, accept);
	int n = snprintf(answer, sizeof answer,
	                 "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
	                 "Connection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
	                 accept);
	// Listed before it is answered: whoever has the answer is sent what comes next.
	t->clients[t->count++] = fd;
	place[fd] = t->count;
	if (send(fd, answer, n, MSG_DONTWAIT | MSG_NOSIGNAL) != n)
		forget(t, fd);
}

static void accept_clients(void)
{
	static int next;
	int on = 1, fd;
	while ((fd = accept4(websocket_listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		if (fd >= MAX_FDS)
			die("fd %d is beyond the table", fd);
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
		struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
		epoll_ctl(threads[next].epoll, EPOLL_CTL_ADD, fd, &event);
		next = (next + 1) % thread_count;
	}
	if (errno != EAGAIN && errno != ECONNABORTED)
		die("accept: %s", strerror(errno));
}

static void serve(struct thread *t, const char *bytes, ssize_t length)
{
	for (int i = t->count - 1; i >= 0; i--) {
		ssize_t n = send(t->clients[i], bytes, length, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n == length)
			continue;
		if (n >= 0 || errno == EAGAIN)
			die("a client took %zd of %zd bytes: lower the load", n, length);
		forget(t, t->clients[i]);
	}
}

static void *turn(void *argument)
{
	struct thread *t = argument;
	struct epoll_event events[BATCH];
	static __thread char bytes[64 << 10];

	for (;;) {
		int n = epoll_wait(t->epoll, events, BATCH, -1);
		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd;
			if (fd == websocket_listener) {
				accept_clients();
			} else if (fd == publish_listener) {
				t->source = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
				struct epoll_event event = {.events = EPOLLIN, .data.fd = t->source};
				epoll_ctl(t->epoll, EPOLL_CTL_ADD, t->source, &event);
			} else {
				ssize_t length = recv(fd, bytes, sizeof bytes - 1, MSG_DONTWAIT);
				if (length < 0 && errno == EAGAIN)
					continue;
				if (fd != t->source) {
					if (length <= 0)
						forget(t, fd);
					else if (!place[fd])
						handshake(t, fd, bytes, length);
					continue;
				}
				if (length <= 0) {
					close(fd);
					t->source = -1;
					continue;
				}
				if (t == threads)
					for (int other = 1; other < thread_count; other++)
						if (write(threads[other].feed, bytes, length) != length)
							die("feeding thread %d: %s", other, strerror(errno));
				serve(t, bytes, length);
			}
		}
	}
	return NULL;
}

static void listen_on(int fd, const struct sockaddr *address, socklen_t length, const char *name)
{
	int on = 1;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (fd < 0 || bind(fd, address, length) || listen(fd, 4096))
		die("cannot listen on %s: %s", name, strerror(errno));
	struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
	epoll_ctl(threads[0].epoll, EPOLL_CTL_ADD, fd, &event);
}

int main(int argc, char **argv)
{
	if (argc != 5 || (thread_count = atoi(argv[4])) < 1 || thread_count > MAX_THREADS)
		die("usage: floor ADDRESS PORT PATH THREADS (1 to %d)", MAX_THREADS);

	struct rlimit limit;
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);

	for (int i = 0; i < thread_count; i++) {
		struct thread *t = &threads[i];
		t->epoll = epoll_create1(EPOLL_CLOEXEC);
		t->clients = malloc(MAX_FDS * sizeof *t->clients);
		t->source = -1;
		if (i > 0) {
			int pair[2];
			if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
				die("socketpair: %s", strerror(errno));
			t->feed = pair[0], t->source = pair[1];
			struct epoll_event event = {.events = EPOLLIN, .data.fd = t->source};
			epoll_ctl(t->epoll, EPOLL_CTL_ADD, t->source, &event);
		}
	}

	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
	if (inet_pton(AF_INET, argv[1], &in.sin_addr) != 1)
		die("%s is no IPv4 address", argv[1]);
	websocket_listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	listen_on(websocket_listener, (struct sockaddr *)&in, sizeof in, argv[2]);

	struct sockaddr_un un = {.sun_family = AF_UNIX};
	if (strlen(argv[3]) >= sizeof un.sun_path)
		die("%s is too long for a Unix socket", argv[3]);
	strcpy(un.sun_path, argv[3]);
	publish_listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	listen_on(publish_listener, (struct sockaddr *)&un, sizeof un, argv[3]);

	for (int i = 1; i < thread_count; i++) {
		pthread_t id;
		if (pthread_create(&id, NULL, turn, &threads[i]))
			die("pthread_create failed");
	}
	turn(&threads[0]);
}
