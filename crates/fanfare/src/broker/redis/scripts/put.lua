-- Shared by the scripts that write the log and the control stream.
-- KEYS: 1 log (stream), 2 epoch (hash: server, lineage, epoch, head, bytes, version; ids0, ids1, ids2: when the current
--       generation of ids and the two before it began, in ms), 3 ids (hash: event_id -> sequence)

local function whole(n)
  return string.format('%.0f', n)
end

local function clock()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Whether this server still has the history that a caller means: the process alone does not tell, because a master that
-- was demoted and promoted again holds another one's data. The replication id changes with every promotion. A server is
-- named by its run_id, a colon, and that id; under Sentinel another colon and the configuration epoch follow, which a server
-- does not know.
local function same_history(server)
  local info = redis.call('INFO', 'replication')
  return string.match(server, '^%x*:(%x*)') == (string.match(info, 'master_replid:(%x+)') or '')
end

-- An error unless this is the confirmed server, of that history, and the log is in the caller's epoch.
local function fence(server, epoch)
  local meta = redis.call('HMGET', KEYS[2], 'server', 'epoch')
  if meta[1] == server and meta[2] == epoch and same_history(server) then return nil end
  return redis.error_reply('FENCED this server is not the one that holds the log')
end

-- A member as the hash of members has it: the version at which it became one, the version that it knows, its last beat in
-- ms, which process it is ('-': unknown), and whether it may acknowledge (i) or is still joining (j).
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

-- Adds an entry to the control stream. One that somebody else put at the last possible id would keep out every other, so
-- the stream then begins anew; what nodes have not read of it is void.
local function tell(control, ...)
  local added = redis.pcall('XADD', control, 'MAXLEN', '~', 163840, '*', ...)
  if type(added) == 'table' and added.err then
    if string.find(added.err, 'exhausted', 1, true) or string.find(added.err, 'equal or smaller', 1, true) then
      redis.call('DEL', control)
    end
    -- Raises the same error for the whole script, if it was another.
    redis.call('XADD', control, 'MAXLEN', '~', 163840, '*', ...)
  end
end

-- The farthest that entries of somebody else may move the log's head.
local JUMP = 1048576

-- Writes the stream anew with what it holds. Redis 7.2 and later, and Valkey, let a stream's last id not go back behind an
-- entry that was deleted.
local function rewrite()
  local entries = redis.call('XRANGE', KEYS[1], '-', '+')
  redis.call('DEL', KEYS[1])
  for _, entry in ipairs(entries) do
    local fields = entry[2]
    -- An entry of so many fields is foreign, and its place alone counts.
    if #fields > 64 then fields = {fields[1], fields[2]} end
    redis.call('XADD', KEYS[1], entry[1], unpack(fields))
  end
end

-- Removes every entry behind the head. The scripts move the head with each entry, so such an entry is foreign: without
-- this the stream would take no further entry.
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

-- Removes every entry behind a place with its id. Returns how much they weighed.
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

-- The head to go on from when the stream refuses the next entry: foreign entries that nodes may have taken already keep
-- their places, all others are removed.
local function level(head)
  local last = redis.call('XREVRANGE', KEYS[1], '0-' .. whole(head + JUMP), '0-' .. whole(head), 'COUNT', 1)[1]
  if last then head = math.max(head, tonumber(string.match(last[1], '^0%-(%d+)$'))) end
  remove_behind(head)
  return head
end

-- Returns how much the entry weighs, nil if the stream holds an entry behind its place.
local function put(sequence, epoch, ms, id, audience, json, publisher, trace)
  -- The epoch lets a node that reads on see that the log is no longer the one it followed.
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

-- Lets go of the oldest entries, in batches so that the check is cheap, and never of the newest one.
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
