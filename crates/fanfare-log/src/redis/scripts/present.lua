-- Lists the connections whose nodes are alive.
-- KEYS: 1 log, 2 epoch, 3 ids, 4 nodes (sorted set), 5 connections of a user (set), or a key that does not exist
-- ARGV: 1 prefix of connections, 2 how long a node without heartbeats counts as alive in ms, then connections
-- Returns for each its connection ID, user, node, connect time in ms, connect time by the node's monotonic clock, and
-- address.

local alive = clock() - tonumber(ARGV[2])
local ids = {}
for i = 3, #ARGV do ids[#ids + 1] = ARGV[i] end
for _, id in ipairs(redis.call('SMEMBERS', KEYS[5])) do ids[#ids + 1] = id end
local out = {}
for _, id in ipairs(ids) do
  local held = redis.call('HMGET', ARGV[1] .. id, 'user_id', 'node', 'since', 'came', 'address')
  if held[2] then
    local beat = redis.call('ZSCORE', KEYS[4], held[2])
    if beat and tonumber(beat) >= alive then
      out[#out + 1] = {id, held[1] or '', held[2], held[3] or '0', held[4] or '0', held[5] or ''}
    end
  end
end
return out
