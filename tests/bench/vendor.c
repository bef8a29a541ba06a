// A vendor that costs next to nothing: one thread, epoll, answers rendered beforehand. Speaks OpenAI's format and those
// of the vendors that Parley has adapters for, by path:
//
//   /v1/chat/completions                                  OpenAI, plain and streamed
//   /askhandle/rooms/, /askhandle/messages/               AskHandle
//   /newoaks/chat/Chatbot/GetSession, .../Chat/ClientAsk  NewOaks AI, plain and streamed (JSON lines)
//   /quickchat/chat                                       Quickchat AI, current and legacy (they differ in the request)
//   /misterturing/assistant/conversation/, .../chat/      Mister Turing, raw text, always streamed
//   GET /set/LATENCY_US/CHUNKS/GAP_US                     how answers come from now on; only between two runs
//
// Usage: vendor PORT. The latency stands before every answer that opens no conversation. Gap 0: one write per chunk, back
// to back. The text of each chunk of a stream holds one "~", by which the load generator counts what arrives.
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

enum { FIRST_ID_LENGTH = 16, MOST_CHUNKS = 10000, READ = 65536 };
enum format { OPENAI, NEWOAKS, TURING, FORMATS };

typedef struct { char *text; size_t size, id; } answer_t;  // id: where the conversation's id stands, 0: nowhere

typedef struct conn {
  int fd, closed, timed, blocked;  // timed: in a queue; blocked: waits until the socket takes more
  char *in, *out;
  size_t in_size, in_room, out_size, out_room;
  answer_t *whole;     // what is to be sent after the latency ...
  enum format format;  // ... or, where that is NULL, a stream in this format
  int chunk;           // the next one
  int64_t due;
  struct conn *next;
} conn_t;

typedef struct { conn_t *first, *last; } queue_t;  // all wait equally long, so first in is first out

static int poller, chunks = 100;
static int64_t latency, gap;
static uint64_t ids = 1000000000000000;  // sixteen digits, good as text and as an integer
static queue_t late, paced;
static answer_t openai, room, said, session, asked, quick_new, quick, conversation, fine, lost;
static answer_t heads[FORMATS], *pieces[FORMATS];
static int counts[FORMATS];
static const int leading[FORMATS] = {1, 0, 0}, trailing[FORMATS] = {2, 1, 0};  // pieces that go with the first or last word

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static answer_t json(int status, const char *body) {
  answer_t a = {0};
  int n = asprintf(&a.text, "HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s", status,
                   strlen(body), body);
  a.size = (size_t)n;
  char *id = strstr(a.text, "################");
  a.id = id ? (size_t)(id - a.text) : 0;
  return a;
}

static answer_t chunk(const char *text, int last) {
  answer_t a = {0};
  a.size = (size_t)asprintf(&a.text, "%zx\r\n%s\r\n%s", strlen(text), text, last ? "0\r\n\r\n" : "");
  return a;
}

static answer_t head(const char *type) {
  answer_t a = {0};
  a.size = (size_t)asprintf(&a.text, "HTTP/1.1 200 OK\r\ncontent-type: %s\r\ntransfer-encoding: chunked\r\n\r\n", type);
  return a;
}

static void render_streams(void) {
  static char text[READ], all[MOST_CHUNKS * 16];
  const char *shell = "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1750000000,"
                      "\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":%s,\"finish_reason\":%s}]}\n\n";
  for (int f = 0; f < FORMATS; f++) {
    for (int i = 0; i < counts[f]; i++) free(pieces[f][i].text);
    free(pieces[f]);
    pieces[f] = calloc((size_t)chunks + 3, sizeof(answer_t));
    counts[f] = 0;
  }
  snprintf(text, sizeof text, shell, "{\"role\":\"assistant\",\"content\":\"\"}", "null");
  pieces[OPENAI][counts[OPENAI]++] = chunk(text, 0);
  *all = 0;
  char *end = all;
  for (int i = 0; i < chunks; i++) {
    char word[32], delta[64];
    snprintf(word, sizeof word, "%sword~%03d", i ? " " : "", i);
    end = stpcpy(end, word);
    snprintf(delta, sizeof delta, "{\"content\":\"%s\"}", word);
    snprintf(text, sizeof text, shell, delta, "null");
    pieces[OPENAI][counts[OPENAI]++] = chunk(text, 0);
    snprintf(text, sizeof text, "%s\n", delta);
    pieces[NEWOAKS][counts[NEWOAKS]++] = chunk(text, 0);
    pieces[TURING][counts[TURING]++] = chunk(word, i == chunks - 1);
  }
  snprintf(text, sizeof text, shell, "{}", "\"stop\"");
  pieces[OPENAI][counts[OPENAI]++] = chunk(text, 0);
  pieces[OPENAI][counts[OPENAI]++] = chunk("data: [DONE]\n\n", 1);
  char *summary;
  if (asprintf(&summary, "{\"QuestionID\":375561,\"AnswerID\":375562,\"Answer\":\"%s\",\"TotalToken\":321}\n", all) < 0) exit(1);
  pieces[NEWOAKS][counts[NEWOAKS]++] = chunk(summary, 1);
  free(summary);
}

static void render(void) {
  char text[301] = "", body[2048];
  while (strlen(text) + 30 < sizeof text) strcat(text, "Twelve words make a sentence, ");
  snprintf(body, sizeof body,
           "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1750000000,\"model\":\"bench\",\"choices\":"
           "[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},\"finish_reason\":\"stop\"}],"
           "\"usage\":{\"prompt_tokens\":30,\"completion_tokens\":60,\"total_tokens\":90}}", text);
  openai = json(200, body);
  room = json(201, "{\"uuid\":\"################\",\"label\":\"bench\",\"is_bot_use\":true,\"messages\":[]}");
  snprintf(body, sizeof body, "{\"uuid\":\"################\",\"body\":\"\",\"terminated\":false,\"support_answer\":\"%s\"}", text);
  said = json(201, body);
  const char *shell = "{\"Data\":%s,\"Version\":\"1.0.0\",\"Success\":true,\"Code\":200,\"Message\":\"\"}";
  snprintf(body, sizeof body, shell, "{\"SessionID\":################}");
  session = json(200, body);
  char data[512];
  snprintf(data, sizeof data, "{\"messageid\":375561,\"content\":\"%s\",\"totalToken\":321,\"noAnswer\":false}", text);
  snprintf(body, sizeof body, shell, data);
  asked = json(200, body);
  snprintf(body, sizeof body, "{\"conv_id\":\"################\",\"reply\":\"%s\",\"ord_number\":2,\"src\":0}", text);
  quick_new = json(200, body);
  snprintf(body, sizeof body, "{\"reply\":\"%s\",\"ord_number\":4,\"src\":0}", text);
  quick = json(200, body);
  conversation = json(201, "{\"conversation_id\":\"################\"}");
  fine = json(200, "{}");
  lost = json(404, "{\"detail\":\"Not Found\"}");
  heads[OPENAI] = head("text/event-stream");
  heads[NEWOAKS] = head("text/event-stream");
  heads[TURING] = head("text/event-stream; charset=utf-8");
  render_streams();
}

static void enqueue(queue_t *queue, conn_t *c, int64_t due) {
  c->due = due;
  c->timed = 1;
  c->next = NULL;
  if (queue->last) queue->last->next = c; else queue->first = c;
  queue->last = c;
}

static void listen_for(conn_t *c, int writable) {
  struct epoll_event e = {.events = EPOLLIN | (writable ? EPOLLOUT : 0), .data.ptr = c};
  epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
  c->blocked = writable;
}

static void hang_up(conn_t *c) {
  if (!c->closed) close(c->fd);
  c->closed = 1;
  if (c->timed) return;  // whoever takes it from its queue frees it
  free(c->in);
  free(c->out);
  free(c);
}

static void flush(conn_t *c, const char *text, size_t size) {
  if (!c->blocked) {
    ssize_t sent = send(c->fd, text, size, MSG_NOSIGNAL);
    if (sent == (ssize_t)size) return;
    if (sent < 0 && errno != EAGAIN) return;  // the reading side notices
    if (sent > 0) { text += sent; size -= (size_t)sent; }
    listen_for(c, 1);
  }
  if (c->out_size + size > c->out_room) c->out = realloc(c->out, c->out_room = 2 * (c->out_size + size));
  memcpy(c->out + c->out_size, text, size);
  c->out_size += size;
}

static void unblock(conn_t *c) {
  ssize_t sent = send(c->fd, c->out, c->out_size, MSG_NOSIGNAL);
  if (sent <= 0) return;
  memmove(c->out, c->out + sent, c->out_size -= (size_t)sent);
  if (!c->out_size) listen_for(c, 0);
}

static void reply(conn_t *c, answer_t *a) {
  if (a->id) {
    char id[24];
    snprintf(id, sizeof id, "%016llu", (unsigned long long)++ids);
    memcpy(a->text + a->id, id, FIRST_ID_LENGTH);
  }
  flush(c, a->text, a->size);
}

static void speak(conn_t *c) {  // all there is, or up to the next gap
  if (c->whole) { reply(c, c->whole); return; }
  if (!c->chunk) flush(c, heads[c->format].text, heads[c->format].size);
  while (c->chunk < counts[c->format]) {
    answer_t *a = &pieces[c->format][c->chunk++];
    flush(c, a->text, a->size);
    if (gap && c->chunk > leading[c->format] && c->chunk < counts[c->format] - trailing[c->format]) {
      int64_t t = now();  // a vendor that is late goes on at its pace, and does not catch up
      int64_t due = c->chunk > leading[c->format] + 1 ? c->due + gap : t + gap;
      enqueue(&paced, c, due < t ? t : due);
      return;
    }
  }
}

static int is(const char *line, const char *path) { return !strncmp(line, path, strlen(path)); }

static void set(const char *path) {
  long long l, g;
  int n;
  if (sscanf(path, "/set/%lld/%d/%lld", &l, &n, &g) != 3 || n < 1 || n > MOST_CHUNKS) return;
  latency = l * 1000;
  gap = g * 1000;
  chunks = n;
  render_streams();
}

static void route(conn_t *c, const char *path, const char *body, size_t size) {
  int streams = memmem(body, size, "\"stream\":true", 13) || memmem(body, size, "\"stream\": true", 14);
  c->whole = NULL;
  c->chunk = 0;
  c->format = OPENAI;
  if (is(path, "/v1/chat/completions")) c->whole = streams ? NULL : &openai;
  else if (is(path, "/newoaks/chat/Chat/ClientAsk")) { c->format = NEWOAKS; c->whole = streams ? NULL : &asked; }
  else if (is(path, "/misterturing/assistant/chat/")) c->format = TURING;
  else if (is(path, "/askhandle/messages/")) c->whole = &said;
  else if (is(path, "/quickchat/chat")) c->whole = memmem(body, size, "\"conv_id\":", 10) ? &quick : &quick_new;
  else {
    if (is(path, "/set/")) set(path);
    reply(c, is(path, "/askhandle/rooms/") ? &room
             : is(path, "/newoaks/chat/Chatbot/GetSession") ? &session
             : is(path, "/misterturing/assistant/conversation/") ? &conversation
             : is(path, "/set/") || is(path, "/ ") ? &fine : &lost);
    return;
  }
  if (latency) enqueue(&late, c, now() + latency); else speak(c);
}

static void understand(conn_t *c) {  // one request after the other: none is looked at while an answer is on its way
  while (!c->timed && c->in_size) {
    char *end = memmem(c->in, c->in_size, "\r\n\r\n", 4);
    if (!end) return;
    size_t top = (size_t)(end - c->in) + 4, size = top;
    int chunked = 0;
    for (char *line = c->in; line && line < end; line = memmem(line, (size_t)(end - line), "\r\n", 2)) {
      if (*line == '\r') line += 2;
      if (!strncasecmp(line, "content-length:", 15)) size = top + strtoul(line + 15, NULL, 10);
      if (!strncasecmp(line, "transfer-encoding: chunked", 26)) chunked = 1;
    }
    if (chunked) {
      char *last = memmem(end + 2, c->in_size - top + 2, "\r\n0\r\n\r\n", 7);
      if (!last) return;
      size = (size_t)(last - c->in) + 7;
    }
    if (c->in_size < size) return;
    char *path = memchr(c->in, ' ', top);
    route(c, path ? path + 1 : "", c->in + top, size - top);
    memmove(c->in, c->in + size, c->in_size -= size);
  }
}

static void hear(conn_t *c) {
  if (c->in_size + READ > c->in_room) c->in = realloc(c->in, c->in_room = 2 * c->in_room + READ);
  ssize_t got = recv(c->fd, c->in + c->in_size, READ, 0);
  if (got < 0 && errno == EAGAIN) return;
  if (got <= 0) { hang_up(c); return; }
  c->in_size += (size_t)got;
  understand(c);
}

static void greet(int listener) {
  for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    conn_t *c = calloc(1, sizeof *c);
    c->fd = fd;
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
  }
}

static void run_due(queue_t *queue) {
  for (int64_t t = now(); queue->first && queue->first->due <= t;) {
    conn_t *c = queue->first;
    if (!(queue->first = c->next)) queue->last = NULL;
    c->timed = 0;
    if (c->closed) { hang_up(c); continue; }
    speak(c);
    understand(c);
  }
}

int main(int argc, char **argv) {
  if (argc != 2) { fprintf(stderr, "usage: vendor PORT\n"); return 2; }
  setrlimit(RLIMIT_NOFILE, &(struct rlimit){65536, 65536});
  signal(SIGPIPE, SIG_IGN);
  render();
  poller = epoll_create1(0);
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4096)) { perror("vendor"); return 1; }
  epoll_ctl(poller, EPOLL_CTL_ADD, listener, &(struct epoll_event){.events = EPOLLIN, .data.ptr = NULL});
  for (struct epoll_event events[256];;) {
    int64_t due = late.first ? late.first->due : INT64_MAX;
    if (paced.first && paced.first->due < due) due = paced.first->due;
    int64_t left = due == INT64_MAX ? 0 : due - now();
    struct timespec wait = {left > 0 ? left / 1000000000 : 0, left > 0 ? left % 1000000000 : 0};
    int n = epoll_pwait2(poller, events, 256, due == INT64_MAX ? NULL : &wait, NULL);
    for (int i = 0; i < n; i++) {
      conn_t *c = events[i].data.ptr;
      if (!c) { greet(listener); continue; }
      if (events[i].events & EPOLLOUT) unblock(c);
      if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) hear(c);
    }
    run_due(&late);
    run_due(&paced);
  }
}
