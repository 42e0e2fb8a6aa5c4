-- Records the clients that connected to a node and disconnected from it.
-- KEYS: 1 log, 2 epoch, 3 ids, 4 control (stream), 5 the node's connections (set)
-- ARGV: 1 node, 2 prefix of connections, 3 prefix of users, 4 suffix of users, 5 TTL in s, 6 maximum number of
--       connections of a user on all nodes (0: unlimited), 7 the time by the node's monotonic clock in ms, 8 server,
--       then for each client: '+' (connected), '*' (connected, and its user has no limit) or '-' (disconnected),
--       connection, user, when it connected by the node's monotonic clock (distinguishes it from others with the same
--       ID on that node), the same by this server's clock, the maximum error of that in ms, connect time in ms, address
--
-- A connection that exceeds the limit of its user is closed. If two nodes claim a connection, the one to which the
-- client connected later keeps it. The other one receives a command to close it, with a mark if the order is not
-- certain ('d').

-- The timeout of a node for a response.
local ANSWER_MS = 2000
local node, ttl, limit = ARGV[1], ARGV[5], tonumber(ARGV[6])
local now = whole(clock())
-- Parts of the server's name (run_id:master_replid). A value of more than 64 bytes would double the memory of a hash.
local server = string.sub(ARGV[8], 1, 12) .. string.sub(ARGV[8], 42, 53)
for i = 9, #ARGV, 8 do
  local id, user, came, at, spread = ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5]
  local key, users = ARGV[2] .. id, ARGV[3] .. user .. ARGV[4]
  local held = redis.call('HMGET', key, 'node', 'came', 'at', 'last_seen', 'spread', 'server')
  local other = held[1] and held[1] ~= node
  if ARGV[i] ~= '-' then
    -- The connect time by this server's clock. The command was sent at most ANSWER_MS ago. If the estimate of the node
    -- contradicts that, this server's clock was set since the node read it, and the estimate is void.
    local latest = tonumber(now) - (tonumber(ARGV[7]) - tonumber(came))
    at, spread = tonumber(at), tonumber(spread)
    if at - spread > latest or at + spread < latest - ANSWER_MS then
      at, spread = latest - ANSWER_MS / 2, ANSWER_MS / 2
    end
    local before = tonumber(held[3] or 0)
    -- A time by another server's clock cannot be compared, nor can a time later than now, which was written before
    -- this clock was set back.
    local void = held[6] ~= server or tonumber(held[4] or 0) > tonumber(now)
    local sure = not void and math.abs(at - before) > spread + tonumber(held[5] or 0)
    local doubt = sure and '' or '1'
    if not other or before <= at or void then
      redis.call('HSET', key, 'user_id', user, 'node', node, 'came', came, 'at', whole(at), 'spread', whole(spread), 'server', server,
        'since', ARGV[i + 6], 'last_seen', now, 'address', ARGV[i + 7])
      redis.call('EXPIRE', key, ttl)
      local new = redis.call('SADD', users, id) == 1
      if new and ARGV[i] == '+' and limit > 0 and redis.call('SCARD', users) > limit then
        tell(KEYS[4], 'k', 'surplus', 'n', node, 'c', id)
      end
      redis.call('EXPIRE', users, ttl)
      redis.call('SADD', KEYS[5], id)
      if other then
        tell(KEYS[4], 'k', 'replaced', 'n', held[1], 'c', id, 's', held[2] or '', 'd', doubt)
      end
    else
      -- The newer connection was written first.
      tell(KEYS[4], 'k', 'replaced', 'n', node, 'c', id, 's', came, 'd', doubt)
    end
  else
    local own = held[1] == node and held[2] == came
    if own then
      redis.call('DEL', key)
      redis.call('SREM', users, id)
    end
    -- A newer socket with the same connection ID may be on this node.
    if own or held[1] ~= node then redis.call('SREM', KEYS[5], id) end
  end
end
redis.call('EXPIRE', KEYS[5], ttl)
return #ARGV
