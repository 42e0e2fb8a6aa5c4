-- Puts back what a node knows and this server lost, as long as the server is not confirmed: entries, and the epochs that
-- began after those of its log.
-- KEYS: 1 log, 2 epoch, 3 ids, 4 reports (hash), 5 and 6 the two generations of ids before
-- ARGV: 1 server, 2 the node's lineage, 3 its newest epoch, 4 the lineage and 5 the head that the node found here, 6 the sequence up to
--       which both have the same, 7 first sequence of the entries, then epoch, time in ms, event_id, audience, json, publisher, trace for each
-- Returns the log's head afterwards, -1 if things have changed since the node looked.

local meta = redis.call('HMGET', KEYS[2], 'server', 'lineage', 'head', 'bytes')
local head, bytes = tonumber(meta[3] or 0), tonumber(meta[4] or 0)
if meta[1] == ARGV[1] and same_history(ARGV[1]) then return -1 end
if (meta[2] or '') ~= ARGV[4] or head ~= tonumber(ARGV[5]) then return -1 end
-- A node that puts entries back is waited for, however long that takes.
if redis.call('HEXISTS', KEYS[2], 'since') == 1 then redis.call('HSET', KEYS[2], 'since', whole(clock())) end
-- What an older copy held behind that place was given up when the node's epoch began.
if head > tonumber(ARGV[6]) then
  head = tonumber(ARGV[6])
  bytes = math.max(bytes - forget_behind(head, KEYS[3], KEYS[5], KEYS[6]), 0)
  if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('XLEN', KEYS[1]) == 0 then
    -- What it had evicted may have been behind that place too: their ids can't be told from others.
    redis.call('UNLINK', KEYS[3], KEYS[5], KEYS[6])
    redis.call('HDEL', KEYS[2], 'ids0', 'ids1', 'ids2')
    redis.call('HSET', KEYS[2], 'ids_lost', 1)
  end
  -- What others have put back may have been among it.
  redis.call('DEL', KEYS[4])
end
-- Between the copy and the node's oldest entry there may be a hole: what was there has been evicted everywhere.
if #ARGV > 7 then
  local before = tonumber(ARGV[7]) - 1
  -- Its ids are lost with it.
  if before > head then redis.call('HSET', KEYS[2], 'ids_lost', 1) end
  head = before
end
for i = 8, #ARGV, 7 do
  local function try()
    return put(head + 1, ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5], ARGV[i + 6])
  end
  local weight = try()
  if not weight then
    remove_behind(head)
    weight = try()
  end
  bytes = bytes + weight
  head = head + 1
end
-- The members that stand here need not be the last ones.
redis.call('HDEL', KEYS[2], 'left')
redis.call('HSET', KEYS[2], 'lineage', ARGV[2], 'epoch', ARGV[3], 'head', whole(head), 'bytes', whole(bytes))
return head
