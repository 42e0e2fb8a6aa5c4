-- Functions that all scripts share.
-- KEYS: 1 log (stream), 2 epoch (hash: server, lineage, epoch, head, bytes, version; ids0, ids1, ids2: when the current
--       generation of ids and the two before it began, in ms), 3 ids (hash: event_id -> sequence)

local function whole(n)
  return string.format('%.0f', n)
end

local function clock()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Whether this server still has the replication history that the caller means. The process alone does not identify it:
-- a master that was demoted and promoted again has the data of another one. The replication id changes with every
-- promotion. The name of a server is its run_id, a colon, and that id. Under Sentinel another colon and the
-- configuration epoch follow, which the server does not know.
local function same_history(server)
  local info = redis.call('INFO', 'replication')
  return string.match(server, '^%x*:(%x*)') == (string.match(info, 'master_replid:(%x+)') or '')
end

-- Returns an error unless this is the confirmed server, with that history, and the log is in the caller's epoch.
local function fence(server, epoch)
  local meta = redis.call('HMGET', KEYS[2], 'server', 'epoch')
  if meta[1] == server and meta[2] == epoch and same_history(server) then return nil end
  return redis.error_reply('FENCED this server is not the one that holds the log')
end

-- The encoding of a member: the version at which it became one, the version that it knows, its last heartbeat in ms,
-- its process ('-': unknown), and its state: may acknowledge (i) or joining (j).
local function read_member(text)
  local joined, seen, beat, process, state = string.match(text, '^(%d+) (%d+) (%d+) (%S+) (%a)$')
  return {
    joined = tonumber(joined or 0), seen = tonumber(seen or 0), beat = tonumber(beat or 0), process = process or '-',
    state = state or 'j',
  }
end

local function member_text(member)
  return table.concat({whole(member.joined), whole(member.seen), whole(member.beat), member.process, member.state}, ' ')
end

-- Adds an entry to the control stream. A foreign entry with the last possible id would prevent all further entries. In
-- that case the stream is deleted; commands that nodes have not read yet are lost.
local function tell(control, ...)
  local added = redis.pcall('XADD', control, 'MAXLEN', '~', 163840, '*', ...)
  if type(added) == 'table' and added.err then
    if string.find(added.err, 'exhausted', 1, true) or string.find(added.err, 'equal or smaller', 1, true) then
      redis.call('DEL', control)
    end
    -- Raises any other error for the whole script.
    redis.call('XADD', control, 'MAXLEN', '~', 163840, '*', ...)
  end
end

-- The maximum distance by which foreign entries may advance the head of the log.
local JUMP = 1048576

-- Rewrites the stream with its entries, to reset its last id. Redis 7.2 and later, and Valkey, reject a lower last id
-- (XSETID) if an entry beyond it was deleted.
local function rewrite()
  local entries = redis.call('XRANGE', KEYS[1], '-', '+')
  redis.call('DEL', KEYS[1])
  for _, entry in ipairs(entries) do
    local fields = entry[2]
    -- An entry with so many fields is foreign, and only its position matters. unpack() could not pass all fields.
    if #fields > 64 then fields = {fields[1], fields[2]} end
    redis.call('XADD', KEYS[1], entry[1], unpack(fields))
  end
end

-- Removes every entry behind the head. The scripts advance the head with each entry, so these entries are foreign. The
-- stream would accept no further entries otherwise.
local function remove_behind(head)
  local from = '(0-' .. whole(head)
  while true do
    local foreign = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 16)
    if #foreign == 0 then break end
    for _, entry in ipairs(foreign) do redis.call('XDEL', KEYS[1], entry[1]) end
  end
  if redis.call('EXISTS', KEYS[1]) == 0 then return end
  local set = redis.pcall('XSETID', KEYS[1], '0-' .. whole(head))
  if type(set) == 'table' and set.err then rewrite() end
end

-- Removes every entry behind a position together with its event_id. Returns their total weight.
local function forget_behind(place, ...)
  local weight, from = 0, '(0-' .. whole(place)
  while true do
    local entries = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 64)
    if #entries == 0 then break end
    for _, entry in ipairs(entries) do
      local f = entry[2]
      for _, ids in ipairs({...}) do redis.call('HDEL', ids, f[2] or '') end
      weight = weight + #(f[2] or '') + #(f[4] or '') + #(f[8] or '') + 100
      from = '(' .. entry[1]
    end
  end
  remove_behind(place)
  return weight
end

-- Returns the head from which the log continues when the stream rejects the next entry. Foreign entries that nodes may
-- have read already keep their positions; all others are removed.
local function level(head)
  local last = redis.call('XREVRANGE', KEYS[1], '0-' .. whole(head + JUMP), '0-' .. whole(head), 'COUNT', 1)[1]
  if last then head = math.max(head, tonumber(string.match(last[1], '^0%-(%d+)$'))) end
  remove_behind(head)
  return head
end

-- Adds an entry. Returns its weight, or nil if the stream has an entry at or behind its position.
local function put(sequence, epoch, ms, id, audience, json, publisher, trace)
  -- The epoch lets a node detect that the log is no longer the one that it followed.
  local fields = {'i', id, 'a', audience, 't', whole(ms), 'd', json, 'p', publisher, 'e', epoch}
  if trace ~= '' then
    fields[13], fields[14] = 'x', trace
  end
  local added = redis.pcall('XADD', KEYS[1], '0-' .. whole(sequence), unpack(fields))
  if type(added) == 'table' and added.err then
    if string.find(added.err, 'equal or smaller', 1, true) then return nil end
    -- Raises the same error for the whole script.
    redis.call('XADD', KEYS[1], '0-' .. whole(sequence), unpack(fields))
  end
  redis.call('HSET', KEYS[3], id, whole(sequence))
  return #id + #audience + #json + 100
end

-- Evicts the oldest entries, in batches to keep the check cheap, and never the newest one. Returns the remaining
-- weight.
local function trim(bytes, now, max_events, max_bytes, max_age)
  local length = redis.call('XLEN', KEYS[1])
  for _ = 1, 64 do
    local dropped = 0
    for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 64)) do
      local f = entry[2]
      local over = length > max_events or bytes > max_bytes or now - (tonumber(f[6]) or 0) > max_age
      if not over or length <= 1 then break end
      bytes = bytes - (#(f[2] or '') + #(f[4] or '') + #(f[8] or '') + 100)
      length = length - 1
      dropped = dropped + 1
    end
    if dropped > 0 then redis.call('XTRIM', KEYS[1], 'MAXLEN', length) end
    if dropped < 64 then break end
  end
  return math.max(bytes, 0)
end
