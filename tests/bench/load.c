// A closed-loop load generator: one thread, epoll, keep-alive. Each connection holds chats, one after the other: it POSTs
// the bodies that it was given in turn, so that each continues what the one before began, and then begins a new chat.
//
// Usage: load PORT [options] BODY_FILE...
//   -c N        connections                          -H "Name: value"   one more header (any number)
//   -s SECONDS  the window that is measured          -p PID             whose CPU is measured (any number)
//   -w SECONDS  before the window                    -n TEXT            is replaced by another text, the same length,
//   -r SECONDS  over which connections begin                            for each chat
//   -q PID      the same for processes beside them, such as a store's
//   -k CHUNKS   answers are streams of that many words with a "~" each; fewer, or no [DONE], is an error
//
// Prints one JSON object. Times are microseconds; CPU is in seconds; "first" is from the request to the first "~" of a
// stream, "gap" between two arrivals of words, "continued" counts answers with that x-parley-conversation.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST_TURNS = 256, MOST_MARKS = 4, MOST_PIDS = 64, HEAD = 8192, TAIL = 16, READ = 262144 };
enum state { IDLE, HEADERS, LENGTH, SIZE_LINE, CHUNK, CHUNK_END, TRAILER, UNTIL_CLOSE };

typedef struct { char *text; size_t size; char *marks[MOST_MARKS]; int marked; } body_t;

typedef struct {
  int fd, turn, status, closes, continued;
  uint64_t chat;
  enum state state;
  char head[HEAD], tail[TAIL], line[32];
  size_t headed, lined, left, words;
  int64_t asked, first, last;
  char *rest;  // of a request that the socket did not take at once
  size_t rest_size;
} conn_t;

typedef struct { float *values; size_t count, room; } sample_t;

typedef struct { int pids[MOST_PIDS], count; double used; } tree_t;

static int poller, port, turns, stream_words, connections = 1;
static double seconds = 1, warm = 0.3, ramp = 0;
static body_t bodies[MOST_TURNS];
static tree_t served, beside;
static size_t mark_size;
static uint64_t chats;
static int64_t window_from, window_to;
static sample_t whole, first, gaps;
static uint64_t done, failed, refused, cut_short, broken, continued, words;

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void keep(sample_t *sample, int64_t nanoseconds) {
  if (sample->count == sample->room) {
    sample->room = sample->room ? 2 * sample->room : 65536;
    sample->values = realloc(sample->values, sample->room * sizeof(float));
  }
  sample->values[sample->count++] = (float)nanoseconds / 1000;
}

static int ascending(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

static double percentile(sample_t *sample, double part) {
  return sample->count ? sample->values[(size_t)(part * (double)(sample->count - 1))] : 0;
}

static double cpu(tree_t *tree) {  // seconds that all its processes have used
  double sum = 0;
  for (int i = 0; i < tree->count; i++) {
    char path[64], text[1024];
    unsigned long user, system;
    snprintf(path, sizeof path, "/proc/%d/stat", tree->pids[i]);
    FILE *file = fopen(path, "r");
    if (!file) continue;
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    char *fields = strrchr(text, ')');
    if (fields && sscanf(fields, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) == 2)
      sum += (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
  }
  return sum;
}

static void read_body(const char *path, const char *headers, const char *mark) {
  FILE *file = fopen(path, "rb");
  if (!file || turns == MOST_TURNS) { perror(path); exit(2); }
  fseek(file, 0, SEEK_END);
  size_t size = (size_t)ftell(file);
  rewind(file);
  body_t *body = &bodies[turns++];
  body->text = malloc(size + strlen(headers) + 256);
  int top = sprintf(body->text, "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\n%s"
                    "content-length: %zu\r\n\r\n", port, headers, size);
  if (fread(body->text + top, 1, size, file) != size) exit(2);
  fclose(file);
  body->size = (size_t)top + size;
  char *at = body->text;
  while (mark && body->marked < MOST_MARKS && (at = memmem(at, (size_t)(body->text + body->size - at), mark, mark_size)))
    body->marks[body->marked++] = at++;
}

static void listen_for(conn_t *c, int writable) {
  struct epoll_event e = {.events = EPOLLIN | (writable ? EPOLLOUT : 0), .data.ptr = c};
  epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

static void send_rest(conn_t *c) {
  ssize_t sent = send(c->fd, c->rest, c->rest_size, MSG_NOSIGNAL);
  if (sent <= 0) return;
  memmove(c->rest, c->rest + sent, c->rest_size -= (size_t)sent);
  if (c->rest_size) return;
  free(c->rest);
  c->rest = NULL;
  listen_for(c, 0);
}

static void call(conn_t *c) {  // connect
  c->fd = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (connect(c->fd, (struct sockaddr *)&at, sizeof at)) { perror("connect"); exit(1); }
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
  epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
}

static void ask(conn_t *c) {
  body_t *body = &bodies[c->turn];
  if (c->turn == 0) c->chat = ++chats;
  char nonce[32];
  snprintf(nonce, sizeof nonce, "%0*llu", (int)mark_size, (unsigned long long)c->chat);
  for (int i = 0; i < body->marked; i++) memcpy(body->marks[i], nonce, mark_size);
  c->state = HEADERS;
  c->headed = c->words = 0;
  c->first = c->last = 0;
  memset(c->tail, 0, TAIL);
  c->asked = now();
  ssize_t sent = send(c->fd, body->text, body->size, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent < 0) sent = 0;
  if ((size_t)sent < body->size) {  // the body is shared and will be another chat's by then
    c->rest_size = body->size - (size_t)sent;
    c->rest = memcpy(malloc(c->rest_size), body->text + sent, c->rest_size);
    listen_for(c, 1);
  }
}

static int inside(int64_t t) { return t >= window_from && t < window_to; }

static void hang_up(conn_t *c) {
  close(c->fd);
  free(c->rest);
  c->rest = NULL;
}

static void finish(conn_t *c, int whole_answer) {
  int64_t t = now();
  int refusal = c->status < 200 || c->status > 299;
  int is_short = stream_words && ((int)c->words < stream_words || !memmem(c->tail, TAIL, "[DONE]", 6));
  int failure = !whole_answer || refusal || is_short;
  if (inside(t)) {
    done += !failure;
    failed += failure;
    broken += !whole_answer;
    refused += refusal;
    cut_short += is_short && !refusal;
    continued += c->continued;
    if (!failure) keep(&whole, t - c->asked);
    if (!failure && c->first) keep(&first, c->first - c->asked);
  }
  c->turn = failure ? 0 : (c->turn + 1) % turns;
  if (!whole_answer || c->closes) { hang_up(c); call(c); }
  ask(c);
}

static void take(conn_t *c, const char *text, size_t size) {  // of a body
  size_t found = 0;
  for (const char *at = text, *end = text + size; stream_words && (at = memchr(at, '~', (size_t)(end - at))); at++) found++;
  if (found) {
    int64_t t = now();
    if (!c->words) c->first = t;
    else if (inside(t)) keep(&gaps, t - c->last);
    c->last = t;
    c->words += found;
    if (inside(t)) words += found;
  }
  size_t old = size < TAIL ? TAIL - size : 0;
  memmove(c->tail, c->tail + TAIL - old, old);
  memcpy(c->tail + old, text + size - (TAIL - old), TAIL - old);
}

static void read_head(conn_t *c) {
  c->status = atoi(c->head + 9);
  c->closes = strcasestr(c->head, "\r\nconnection: close") != NULL;
  c->continued = strcasestr(c->head, "\r\nx-parley-conversation: continued") != NULL;
  char *length = strcasestr(c->head, "\r\ncontent-length:");
  c->left = length ? strtoul(length + 17, NULL, 10) : 0;
  c->lined = 0;
  c->state = strcasestr(c->head, "\r\ntransfer-encoding: chunked") ? SIZE_LINE : length ? LENGTH : UNTIL_CLOSE;
  if (c->state == UNTIL_CLOSE) c->closes = 1;
}

static size_t hear_head(conn_t *c, const char *text, size_t size) {
  size_t before = c->headed, room = HEAD - 1 - before, taken = size < room ? size : room;
  memcpy(c->head + before, text, taken);
  c->head[before + taken] = 0;
  char *end = strstr(c->head + (before > 3 ? before - 3 : 0), "\r\n\r\n");
  if (!end) { c->headed += taken; return taken; }
  size_t top = (size_t)(end - c->head) + 4;
  c->head[top] = 0;
  read_head(c);
  if (c->state == LENGTH && !c->left) finish(c, 1);
  return top - before;
}

static size_t hear_line(conn_t *c, const char *text, size_t size) {  // of the framing of chunks
  const char *end = memchr(text, '\n', size);
  size_t taken = end ? (size_t)(end - text) + 1 : size;
  for (size_t i = 0; i < taken && c->lined < sizeof c->line - 1; i++)
    if (text[i] != '\r' && text[i] != '\n') c->line[c->lined++] = text[i];
  if (!end) return taken;
  c->line[c->lined] = 0;
  size_t lined = c->lined;
  c->lined = 0;
  if (c->state == SIZE_LINE) c->state = (c->left = strtoul(c->line, NULL, 16)) ? CHUNK : TRAILER;
  else if (c->state == CHUNK_END) c->state = SIZE_LINE;
  else if (!lined) finish(c, 1);
  return taken;
}

static void hear(conn_t *c, const char *text, size_t size) {
  while (size) {
    size_t taken = size;
    if (c->state == IDLE) return;
    if (c->state == HEADERS) taken = hear_head(c, text, size);
    else if (c->state == UNTIL_CLOSE) take(c, text, size);
    else if (c->state == LENGTH || c->state == CHUNK) {
      if (taken > c->left) taken = c->left;
      take(c, text, taken);
      c->left -= taken;
      if (!c->left && c->state == CHUNK) c->state = CHUNK_END;
      else if (!c->left) finish(c, 1);
    } else taken = hear_line(c, text, size);
    text += taken;
    size -= taken;
  }
}

static void arrange(int argc, char **argv) {
  char headers[4096] = "";
  const char *mark = NULL;
  port = atoi(argv[1]);
  for (int option; (option = getopt(argc - 1, argv + 1, "c:s:w:r:k:n:H:p:q:")) != -1;) {
    if (option == 'c') connections = atoi(optarg);
    if (option == 's') seconds = atof(optarg);
    if (option == 'w') warm = atof(optarg);
    if (option == 'r') ramp = atof(optarg);
    if (option == 'k') stream_words = atoi(optarg);
    if (option == 'n') mark_size = strlen(mark = optarg);
    tree_t *tree = option == 'p' ? &served : option == 'q' ? &beside : NULL;
    if (tree && tree->count < MOST_PIDS) tree->pids[tree->count++] = atoi(optarg);
    if (option == 'H') strcat(strcat(headers, optarg), "\r\n");
  }
  for (int i = optind + 1; i < argc; i++) read_body(argv[i], headers, mark);
  chats = (uint64_t)now() / 1000 % 1000000000000;  // other chats than those of the run before
}

static void tell(double own) {
  double used = served.used;
  sample_t *samples[] = {&whole, &first, &gaps};
  for (int i = 0; i < 3; i++) qsort(samples[i]->values, samples[i]->count, sizeof(float), ascending);
  printf("{\"requests\": %lu, \"failed\": %lu, \"refused\": %lu, \"short\": %lu, \"broken\": %lu, \"continued\": %lu, ", done, failed,
         refused, cut_short, broken, continued);
  printf("\"seconds\": %.3f, \"per_second\": %.1f, \"words\": %lu, \"words_per_second\": %.1f, ", seconds, (double)done / seconds,
         words, (double)words / seconds);
  printf("\"p50\": %.1f, \"p99\": %.1f, \"first_p50\": %.1f, \"first_p99\": %.1f, \"gap_p50\": %.1f, \"gap_p99\": %.1f, ",
         percentile(&whole, 0.5), percentile(&whole, 0.99), percentile(&first, 0.5), percentile(&first, 0.99),
         percentile(&gaps, 0.5), percentile(&gaps, 0.99));
  printf("\"cpu\": %.3f, \"cpu_request\": %.2f, \"cpu_word\": %.3f, \"beside_request\": %.2f, \"own_cpu\": %.3f}\n", used, done ? used * 1e6 / (double)done : 0,
         words ? used * 1e6 / (double)words : 0,
         done ? beside.used * 1e6 / (double)done : 0, own);
}

int main(int argc, char **argv) {
  if (argc < 3) { fprintf(stderr, "usage: load PORT [options] BODY_FILE...\n"); return 2; }
  setrlimit(RLIMIT_NOFILE, &(struct rlimit){65536, 65536});
  signal(SIGPIPE, SIG_IGN);
  arrange(argc, argv);
  poller = epoll_create1(0);
  conn_t *all = calloc((size_t)connections, sizeof *all);
  char *text = malloc(READ);
  int64_t began = now();
  window_from = began + (int64_t)((warm + ramp) * 1e9);
  window_to = window_from + (int64_t)(seconds * 1e9);
  int started = 0, measuring = 0;
  for (struct epoll_event events[256];;) {
    int64_t t = now();
    if (!measuring && t >= window_from) { measuring = 1; served.used = -cpu(&served); beside.used = -cpu(&beside); }
    if (t >= window_to) break;
    while (started < connections && t >= began + (int64_t)(ramp * 1e9 * started / connections)) {
      call(&all[started]);
      ask(&all[started++]);
    }
    int n = epoll_wait(poller, events, 256, started < connections ? 1 : 5);
    for (int i = 0; i < n; i++) {
      conn_t *c = events[i].data.ptr;
      if (events[i].events & EPOLLOUT && c->rest) send_rest(c);
      if (!(events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) continue;
      ssize_t got = recv(c->fd, text, READ, MSG_DONTWAIT);
      if (got > 0) hear(c, text, (size_t)got);
      else if (got == 0 || (errno != EAGAIN && errno != EINTR)) finish(c, c->state == UNTIL_CLOSE);
    }
  }
  served.used += cpu(&served);
  beside.used += cpu(&beside);
  struct rusage own;
  getrusage(RUSAGE_SELF, &own);
  double own_cpu = (double)(own.ru_utime.tv_sec + own.ru_stime.tv_sec) + (double)(own.ru_utime.tv_usec + own.ru_stime.tv_usec) / 1e6;
  tell(own_cpu);
  return 0;
}
