-- Puts back entries that a node holds and the log lost, as long as this server is not confirmed yet.
-- KEYS: 1 log, 2 epoch, 3 ids, 4 nodes (sorted set)
-- ARGV: 1 server, 2 the node's lineage, 3 the lineage that the node found here, 4 first sequence, 5 node, then
--       time in ms, event_id, audience, json, publisher, trace for each entry
-- Returns the log's head afterwards, -1 if things have changed since the node looked.

local meta = redis.call('HMGET', KEYS[2], 'server', 'lineage', 'head', 'bytes')
if meta[1] == ARGV[1] or (meta[2] or '') ~= ARGV[3] then return -1 end
-- Whoever puts back is waited for, however long that takes.
local now = whole(clock())
redis.call('ZADD', KEYS[4], now, ARGV[5])
if redis.call('HEXISTS', KEYS[2], 'since') == 1 then redis.call('HSET', KEYS[2], 'since', now) end
local head, bytes, sequence = tonumber(meta[3] or 0), tonumber(meta[4] or 0), tonumber(ARGV[4])
-- An empty log takes up where the node's window begins.
if not meta[2] and head == 0 and redis.call('EXISTS', KEYS[1]) == 0 then head = sequence - 1 end
if head ~= sequence - 1 then return -1 end
for i = 6, #ARGV, 6 do
  local function try()
    return put(head + 1, tonumber(ARGV[i]), ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5])
  end
  local weight = try()
  if not weight then
    remove_behind(head)
    weight = try()
  end
  bytes = bytes + weight
  head = head + 1
end
redis.call('HSET', KEYS[2], 'lineage', ARGV[2], 'head', whole(head), 'bytes', whole(bytes))
return head
