-- Removes connections that a node left in the list: those of a dead node, or those that this node had before a resync.
-- KEYS: 1 log, 2 epoch, 3 ids, 4 nodes (sorted set), 5 the connections to examine (set), 6 the current connections
--       (set)
-- ARGV: 1 the node, 2 prefix of connections, 3 prefix of users, 4 suffix of users, 5 maximum number of connections to
--       examine
-- Returns the number of connections that were examined.

local ids = redis.call('SPOP', KEYS[5], ARGV[5])
for _, id in ipairs(ids) do
  if redis.call('SISMEMBER', KEYS[6], id) == 0 then
    local key = ARGV[2] .. id
    local held = redis.call('HMGET', key, 'node', 'user_id')
    if held[1] == ARGV[1] then
      redis.call('DEL', key)
      redis.call('SREM', ARGV[3] .. (held[2] or '') .. ARGV[4], id)
    end
  end
end
return #ids
