-- Notes who came to a node and who left it.
-- KEYS: 1 log, 2 epoch, 3 ids, 4 control (stream), 5 the node's connections (set)
-- ARGV: 1 node, 2 prefix of connections, 3 prefix of users, 4 suffix of users, 5 TTL in s, 6 connections that a user may
--       have on all nodes (0: any number), 7 the time by the node's own clock in ms, 8 server, then '+', '*' (whose user may have any number) or
--       '-', connection, user, when it came by the
--       node's own clock (what tells it from others of the same name there), the same by this server's clock, by how many ms
--       that may be wrong either way, since (ms), address for each
-- Who comes as one too many of its user is told to go. Of two nodes that claim a connection the one to which it came later is right; the other is told
-- to let it go, and whether that is certain ('d': it is not).

-- For how long a node waits for an answer.
local ANSWER_MS = 2000
local node, ttl, limit = ARGV[1], ARGV[5], tonumber(ARGV[6])
local now = whole(clock())
for i = 9, #ARGV, 8 do
  local id, user, came, at, spread = ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5]
  local key, users = ARGV[2] .. id, ARGV[3] .. user .. ARGV[4]
  local held = redis.call('HMGET', key, 'node', 'came', 'at', 'last_seen', 'spread', 'server')
  local other = held[1] and held[1] ~= node
  if ARGV[i] ~= '-' then
    -- By this server's clock: it was sent at most as long ago as a node waits for an answer. If that clock was set since the node read it, the
    -- node's estimate is void.
    local latest = tonumber(now) - (tonumber(ARGV[7]) - tonumber(came))
    at, spread = tonumber(at), tonumber(spread)
    if at - spread > latest or at + spread < latest - ANSWER_MS then
      at, spread = latest - ANSWER_MS / 2, ANSWER_MS / 2
    end
    local before = tonumber(held[3] or 0)
    -- What another server's clock says can't be compared, and what was written later than now was written before this clock was set back.
    local void = held[6] ~= ARGV[8] or tonumber(held[4] or 0) > tonumber(now)
    local sure = not void and math.abs(at - before) > spread + tonumber(held[5] or 0)
    local doubt = sure and '' or '1'
    if not other or before <= at or void then
      redis.call('HSET', key, 'user_id', user, 'node', node, 'came', came, 'at', whole(at), 'spread', whole(spread), 'server', ARGV[8],
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
      -- The newer claim was written first.
      tell(KEYS[4], 'k', 'replaced', 'n', node, 'c', id, 's', came, 'd', doubt)
    end
  else
    local own = held[1] == node and held[2] == came
    if own then
      redis.call('DEL', key)
      redis.call('SREM', users, id)
    end
    -- A newer socket of the same connection may be here.
    if own or held[1] ~= node then redis.call('SREM', KEYS[5], id) end
  end
end
redis.call('EXPIRE', KEYS[5], ttl)
return #ARGV
