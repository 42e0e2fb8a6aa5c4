-- Restores entries and epochs that a node has and this server lost. Works only while the server is not confirmed.
-- KEYS: 1 log, 2 epoch, 3 ids, 4 reports (hash), 5 and 6 the two previous generations of ids
-- ARGV: 1 server, 2 the node's lineage, 3 its newest epoch, 4 the lineage and 5 the head that the node found here, 6
--       the sequence up to which both have the same entries, 7 first sequence of the restored entries, then epoch, time
--       in ms, event_id, audience, json, publisher, trace for each
-- Returns the new head of the log, or -1 if the log has changed since the node read it.

local meta = redis.call('HMGET', KEYS[2], 'server', 'lineage', 'head', 'bytes')
local head, bytes = tonumber(meta[3] or 0), tonumber(meta[4] or 0)
if meta[1] == ARGV[1] and same_history(ARGV[1]) then return -1 end
if (meta[2] or '') ~= ARGV[4] or head ~= tonumber(ARGV[5]) then return -1 end
-- The settle time starts again, so a restore may take any time.
if redis.call('HEXISTS', KEYS[2], 'since') == 1 then redis.call('HSET', KEYS[2], 'since', whole(clock())) end
-- Entries of an older copy behind that position were abandoned when the node's epoch began.
if head > tonumber(ARGV[6]) then
  head = tonumber(ARGV[6])
  bytes = math.max(bytes - forget_behind(head, KEYS[3], KEYS[5], KEYS[6]), 0)
  if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('XLEN', KEYS[1]) == 0 then
    -- Events that the copy had evicted may have been behind that position too. Their ids cannot be distinguished from
    -- others.
    redis.call('UNLINK', KEYS[3], KEYS[5], KEYS[6])
    redis.call('HDEL', KEYS[2], 'ids0', 'ids1', 'ids2')
    redis.call('HSET', KEYS[2], 'ids_lost', 1)
  end
  -- The removed entries may include some that other nodes restored, so all nodes must report again.
  redis.call('DEL', KEYS[4])
end
-- There may be a hole between the copy and the node's oldest entry. Its events have been evicted on all nodes.
if #ARGV > 7 then
  local before = tonumber(ARGV[7]) - 1
  -- The ids of these events are lost too.
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
-- The members that are stored here may be outdated.
redis.call('HDEL', KEYS[2], 'left')
redis.call('HSET', KEYS[2], 'lineage', ARGV[2], 'epoch', ARGV[3], 'head', whole(head), 'bytes', whole(bytes))
return head
