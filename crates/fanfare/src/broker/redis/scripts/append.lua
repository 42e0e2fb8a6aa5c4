-- Appends records in their order, each event_id once.
-- ARGV: 1 server, 2 most events, 3 most bytes, 4 longest age in ms, 5 '1' to write even if nothing is new, then
--       event_id, audience, json, publisher, trace for each record
-- Returns the time in ms, then for each record its sequence, negative if the log had it already.

local meta = redis.call('HMGET', KEYS[2], 'server', 'head', 'bytes')
if meta[1] ~= ARGV[1] then return redis.error_reply('FENCED this server is not the one that holds the log') end
local head, bytes, now = tonumber(meta[2] or 0), tonumber(meta[3] or 0), clock()
local first = head
local out = {now}
for i = 6, #ARGV, 5 do
  local held = redis.call('HGET', KEYS[3], ARGV[i])
  if held then
    out[#out + 1] = -tonumber(held)
  else
    local function try() return put(head + 1, now, ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]) end
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
local max_events, max_bytes = tonumber(ARGV[2]), tonumber(ARGV[3])
local crossed = math.floor(head / 64) > math.floor(first / 64)
if crossed or bytes > max_bytes + max_bytes / 8 then
  bytes = trim(bytes, now, max_events, max_bytes, tonumber(ARGV[4]))
end
if head > first then
  redis.call('HSET', KEYS[2], 'head', whole(head), 'bytes', whole(bytes))
elseif ARGV[5] == '1' then
  -- WAIT counts the replicas that have this connection's last write, so there has to be one.
  redis.call('HSET', KEYS[2], 'touched', whole(now))
end
return out
