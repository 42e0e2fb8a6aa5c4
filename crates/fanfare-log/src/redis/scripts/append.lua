-- Appends records in their order. A record whose event_id is known is not appended again, even if the log has evicted
-- the event.
-- KEYS: 1 log, 2 epoch, 3 ids, 4 members (hash), 5 and 6 the two previous generations of ids
-- ARGV: 1 server, 2 epoch, 3 name of the member, 4 head of the log as known to the node, 5 maximum number of events, 6
--       maximum size in bytes, 7 maximum age in ms, 8 '1' to write even if all records are duplicates, 9 how many ids
--       are remembered, 10 for how long in ms, then event_id, audience, json, publisher, trace for each record
-- Returns the time in ms, then for each record its sequence, negative for a duplicate.

local fenced = fence(ARGV[1], ARGV[2])
if fenced then return fenced end
-- A recovery waits only for members, so other nodes must not append.
local member = redis.call('HGET', KEYS[4], ARGV[3])
if not member or string.sub(member, -1) ~= 'i' then return redis.error_reply('FENCED this node is no member') end
local meta = redis.call('HMGET', KEYS[2], 'head', 'bytes', 'ids0', 'ids1')
local head, bytes, now = tonumber(meta[1] or 0), tonumber(meta[2] or 0), clock()
if head < tonumber(ARGV[4]) then return redis.error_reply('FENCED the log has gone back') end
local first = head
local out = {now}

-- A generation of ids ends after half of the time, or when it has half of the ids that are remembered.
local ids_began = tonumber(meta[3])
if not ids_began then
  redis.call('HSET', KEYS[2], 'ids0', whole(now))
elseif now - ids_began >= tonumber(ARGV[10]) / 2 or redis.call('HLEN', KEYS[3]) >= tonumber(ARGV[9]) / 2 then
  redis.call('UNLINK', KEYS[6])
  if redis.call('EXISTS', KEYS[5]) == 1 then redis.call('RENAME', KEYS[5], KEYS[6]) end
  if redis.call('EXISTS', KEYS[3]) == 1 then redis.call('RENAME', KEYS[3], KEYS[5]) end
  if meta[4] then redis.call('HSET', KEYS[2], 'ids2', meta[4]) end
  redis.call('HSET', KEYS[2], 'ids0', whole(now), 'ids1', meta[3])
end
-- Duplicates are detected in the current generation, so ids that an older one knows are copied to it.
for generation = 5, 6 do
  if redis.call('EXISTS', KEYS[generation]) == 1 then
    for from = 11, #ARGV, 5 * 512 do
      local asked = {}
      for i = from, math.min(from + 5 * 511, #ARGV), 5 do asked[#asked + 1] = ARGV[i] end
      for n, held in ipairs(redis.call('HMGET', KEYS[generation], unpack(asked))) do
        if held then redis.call('HSETNX', KEYS[3], asked[n], held) end
      end
    end
  end
end

for i = 11, #ARGV, 5 do
  local held = redis.call('HGET', KEYS[3], ARGV[i])
  if held then
    out[#out + 1] = -tonumber(held)
  else
    local function try() return put(head + 1, ARGV[2], now, ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]) end
    local weight = try()
    if not weight then
      head = level(head)
      weight = try()
    end
    bytes = bytes + weight
    head = head + 1
    out[#out + 1] = head
  end
end
local max_events, max_bytes = tonumber(ARGV[5]), tonumber(ARGV[6])
local crossed = math.floor(head / 64) > math.floor(first / 64)
if crossed or bytes > max_bytes + max_bytes / 8 then
  bytes = trim(bytes, now, max_events, max_bytes, tonumber(ARGV[7]))
end
if head > first then
  redis.call('HSET', KEYS[2], 'head', whole(head), 'bytes', whole(bytes))
elseif ARGV[8] == '1' then
  -- WAIT counts the replicas that have the last write of this connection, so there must be a write.
  redis.call('HSET', KEYS[2], 'touched', whole(now))
end
return out
