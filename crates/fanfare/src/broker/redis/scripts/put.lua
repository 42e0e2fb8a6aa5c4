-- Shared by the scripts that write the log.
-- KEYS: 1 log (stream), 2 epoch (hash: server, lineage, head, bytes), 3 ids (hash: event_id -> sequence)

local function whole(n)
  return string.format('%.0f', n)
end

local function clock()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function put(sequence, ms, id, audience, json, publisher, trace)
  local fields = {'i', id, 'a', audience, 't', whole(ms), 'd', json, 'p', publisher}
  if trace ~= '' then
    fields[11], fields[12] = 'x', trace
  end
  redis.call('XADD', KEYS[1], '0-' .. whole(sequence), unpack(fields))
  redis.call('HSET', KEYS[3], id, whole(sequence))
  return #id + #audience + #json + 100
end

-- Lets go of the oldest entries, in batches so that the check is cheap, and never of the newest one.
local function trim(bytes, now, max_events, max_bytes, max_age)
  local length = redis.call('XLEN', KEYS[1])
  for _ = 1, 64 do
    local dropped = 0
    for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 64)) do
      local f = entry[2]
      local over = length > max_events or bytes > max_bytes or now - tonumber(f[6] or 0) > max_age
      if not over or length <= 1 then break end
      redis.call('HDEL', KEYS[3], f[2] or '')
      bytes = bytes - (#(f[2] or '') + #(f[4] or '') + #(f[8] or '') + 100)
      length = length - 1
      dropped = dropped + 1
    end
    if dropped > 0 then redis.call('XTRIM', KEYS[1], 'MAXLEN', length) end
    if dropped < 64 then break end
  end
  return math.max(bytes, 0)
end
