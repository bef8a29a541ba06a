"""Parked handles in Redis 6.2 or newer, for processes on many machines. One server, no cluster.

What was put before a server came back, from a dump, a log or a peer, is never found again: its keys name the server's
run and its term as master. So each call is one Lua script, which asks the server for both in the very moment it works.
A user restricted by an ACL therefore needs INFO, besides the commands seen below.
"""

import time
from collections.abc import Callable, Sequence
from secrets import token_bytes
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import orjson
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from proxy.errors import StoreUnavailable
from proxy.messages import Handle, Parked
from proxy.ports import FOUND, PER_HEAD

SWEPT = 100  # entries that are over, or too many, which one put removes at most
CONNECTIONS = 32

# An entry's value is a line of its labels and a line of itself. Labels and index are sets sorted by when entries end.
# A server's `run_id` changes with a restart, its `master_replid` when it was made a master again with another's data
# (also when it is given its first replica: what is parked then is lost).
ERA = """
local function info(section, field) return redis.call('INFO', section):match(field .. ':(%x+)') end
local era = ':1:' .. info('server', 'run_id'):sub(1, 16) .. info('replication', 'master_replid'):sub(1, 16) .. ':'
local entry, label, index = ARGV[1] .. 'entry' .. era, ARGV[1] .. 'label' .. era, ARGV[1] .. 'index' .. era
"""
FORGET = """
local function forget(id)
  local value = redis.call('GETDEL', entry .. id)
  redis.call('ZREM', index, id)
  for _, name in ipairs(value and cjson.decode(value:match('[^\\n]*')) or {}) do
    redis.call('ZREM', label .. name, id)
  end
  return value
end
"""
AGREE = """
redis.call('SET', ARGV[1] .. 'secret', ARGV[2], 'NX')
return redis.call('GET', ARGV[1] .. 'secret')
"""
FIND = """
local seen, values = {}, {}
for i = 3, #ARGV do
  for _, id in ipairs(redis.call('ZRANGE', label .. ARGV[i], -ARGV[2], -1)) do
    local value = not seen[id] and redis.call('GET', entry .. id)
    if value then table.insert(values, value) end
    seen[id] = true
  end
end
return values
"""
TAKE = "return forget(ARGV[2])"
TAKE_NEWEST = """
local ids = redis.call('ZREVRANGE', label .. ARGV[2], 0, ARGV[3] - 1)
for _, id in ipairs(ids) do
  local value = forget(id)
  if value then return value end
  redis.call('ZREM', label .. ARGV[2], id) -- its time is over
end
"""
PUT = """
local _, secret, id, value, now, ends, max_parked, per_head, swept = unpack(ARGV, 1, 9)
local ttl = math.floor((ends - now) * 1000)
local function add(set)
  redis.call('ZADD', set, ends, id)
  if redis.call('PTTL', set) < ttl then redis.call('PEXPIRE', set, ttl) end
end
redis.call('ZADD', index, 'XX', ends, id) -- a full server refuses at this, which it no longer does once it has removed
forget(id)
for _, over in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', now, 'LIMIT', 0, swept)) do forget(over) end
if secret ~= '' then redis.call('SET', ARGV[1] .. 'secret', secret, 'NX') end
if ttl < 1 then return end
add(index)
redis.call('SET', entry .. id, value, 'PX', ttl)
for i = 10, #ARGV do
  local set = label .. ARGV[i]
  redis.call('ZREMRANGEBYSCORE', set, '-inf', now)
  add(set)
end
for _, old in ipairs(redis.call('ZRANGE', label .. ARGV[10], 0, -1 - per_head)) do
  forget(old)
  redis.call('ZREM', label .. ARGV[10], old)
end
local excess = math.min(redis.call('ZCARD', index) - max_parked, tonumber(swept))
if excess > 0 then
  for _, old in ipairs(redis.call('ZRANGE', index, 0, excess - 1)) do forget(old) end
end
"""


class RedisStore:
    """A ConversationStore at `redis://host:port/db` or `rediss://…`; `?prefix=` names its keys (`parley:` if absent).

    Raises ValueError for a URL that is not understood; it connects when asked something. Entries that end first
    go first. It waits as long as the server lets it: Punctual stands in front.
    """

    def __init__(self, url: str, *, max_parked: int, clock: Callable[[], float] = time.time) -> None:
        self._redis, self._prefix = connect(url)
        self._max_parked = max_parked
        self._clock = clock
        self._secret = b""  # the last one heard
        self._scripts = {
            "secret": self._redis.register_script(AGREE),
            "find": self._redis.register_script(ERA + FIND),
            "take": self._redis.register_script(ERA + FORGET + TAKE),
            "take_newest": self._redis.register_script(ERA + FORGET + TAKE_NEWEST),
            "put": self._redis.register_script(ERA + FORGET + PUT),
        }

    async def secret(self) -> bytes:
        """Made once and kept by the server; put back should the server have lost it."""
        self._secret = await self._ask("secret", self._secret or token_bytes(32))
        return self._secret

    async def find(self, labels: Sequence[str]) -> Sequence[Parked]:
        """Entries with any of these labels, newest first."""
        found = [_parked(value) for value in await self._ask("find", FOUND, *labels)]
        return sorted(filter(self._lives, found), key=lambda parked: -parked.spoken_at)

    async def take(self, id: str) -> Parked | None:
        """Remove an entry and return it."""
        return self._living(await self._ask("take", id))

    async def take_newest(self, label: str) -> Parked | None:
        """Remove the entry with a label that ends last, which is the newest unless `idle_ttl` was changed."""
        return self._living(await self._ask("take_newest", label, FOUND))

    async def put(self, parked: Parked) -> None:
        """Park an entry in place of one of its id; those that are over or too many then go."""
        value = orjson.dumps(parked.labels) + b"\n" + orjson.dumps(parked, default=dict)
        ends = parked.spoken_at + parked.ttl
        bounds = self._clock(), ends, self._max_parked, PER_HEAD, SWEPT
        await self._ask("put", self._secret, parked.id, value, *bounds, *parked.labels)

    async def aclose(self) -> None:
        """Hang up."""
        await self._redis.aclose()

    def _living(self, value: bytes | None) -> Parked | None:
        parked = _parked(value) if value else None
        return parked if parked and self._lives(parked) else None

    def _lives(self, parked: Parked) -> bool:
        return parked.spoken_at + parked.ttl > self._clock()

    async def _ask(self, script: str, *arguments: str | bytes | float) -> Any:
        try:
            return await self._scripts[script](args=(self._prefix, *arguments))
        except (RedisError, OSError) as error:
            if "unknown redis command" in str(error).lower():
                raise StoreUnavailable("Redis 6.2 or newer is needed, with INFO and GETDEL") from None
            raise StoreUnavailable(f"Redis does not serve ({type(error).__name__})") from None


def connect(url: str) -> tuple[Redis, str]:
    """A client, which connects when it is needed, and the prefix of its keys. Raises ValueError for a wrong URL."""
    location, prefix = _parse(url)
    never = Retry(NoBackoff(), 0)  # a put that is sent twice may bring back what was taken in between
    pool = BlockingConnectionPool.from_url(
        location, max_connections=CONNECTIONS, timeout=None, retry=never, protocol=2, socket_timeout=None
    )
    return Redis.from_pool(pool), prefix


def _parse(url: str) -> tuple[str, str]:
    """The URL for the driver, and the prefix."""
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        good = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or not (parts.path in ("", "/") or parts.path[1:].isdecimal()):
        raise ValueError("a Redis is written redis://host:port/db; in a password, @ : / ? # and % are written as %xx")
    prefix = options.pop("prefix", "parley:")
    if strange := [name for name in options if not name.startswith("ssl_")]:  # others might turn on retries
        raise ValueError(f"a Redis URL has no {strange[0]}=: only prefix= and, with rediss://, ssl_…=")
    return parts._replace(query=urlencode(options)).geturl(), prefix


def _parked(value: bytes) -> Parked:
    fields = orjson.loads(value.partition(b"\n")[2])
    return Parked(**fields | {"handle": Handle(**fields["handle"]), "labels": tuple(fields["labels"])})
