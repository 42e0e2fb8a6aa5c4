-- Makes a node a member, which may acknowledge, of a log that is confirmed.
-- KEYS: 1 log, 2 epoch, 3 ids, 4 members (hash), 5 control (stream)
-- ARGV: 1 server, 2 epoch, 3 node, 4 the version of the members that the node knows, 5 which process it is ('-': unknown), 6 the
--       members that have been silent for as long as it watched, as they are written here, 7 after how long a silent member is surely gone
--       in ms, then the names of members whose process has ended
-- Returns 'i' if it may acknowledge, else 'j', the version, the log's head, the others that may acknowledge as they are to
-- be watched, and then for each member its name, the version at which it became one, and its process.
--
-- A member's word is asked for after a loss, so somebody who will be asked has to know of a new one before that acknowledges:
-- a member that has read it here. Without any it is enough that all others have been silent for so long that they no longer
-- take it for granted that they know everybody.

local fenced = fence(ARGV[1], ARGV[2])
if fenced then return fenced end
local meta = redis.call('HMGET', KEYS[2], 'version', 'head')
local version, head, now = tonumber(meta[1] or 0), tonumber(meta[2] or 0), clock()

local members, before = {}, version
local function remove(name)
  redis.call('HDEL', KEYS[4], name)
  members[name] = nil
  version = before + 1
end

local held = redis.call('HGETALL', KEYS[4])
for i = 1, #held, 2 do members[held[i]] = read_member(held[i + 1]) end
for i = 8, #ARGV do
  if members[ARGV[i]] and ARGV[i] ~= ARGV[3] then remove(ARGV[i]) end
end
for i = 1, #held, 2 do
  local member = members[held[i]]
  if member and held[i] ~= ARGV[3] and now - member.beat > tonumber(ARGV[7]) then remove(held[i]) end
end

local own = members[ARGV[3]]
if not own then
  version = before + 1
  own = {joined = version, seen = 0, beat = now, process = ARGV[5], state = 'j'}
  members[ARGV[3]] = own
  tell(KEYS[5], 'k', 'joined', 'n', ARGV[3])
end
own.seen, own.beat = tonumber(ARGV[4]), now
-- The server that was confirmed last did not know.
if own.process == '-' then own.process = ARGV[5] end

local others, known = {}, false
for name, member in pairs(members) do
  if name ~= ARGV[3] and member.state == 'i' then
    others[#others + 1] = name .. '=' .. whole(member.beat)
    known = known or member.seen >= own.joined
  end
end
table.sort(others)
local watched = table.concat(others, ' ')
if own.state == 'j' then
  if #others == 0 or known then
    own.state = 'i'
  elseif watched == ARGV[6] then
    for other in string.gmatch(watched, '(%S+)=') do remove(other) end
    own.state, watched = 'i', ''
  end
end
redis.call('HSET', KEYS[4], ARGV[3], member_text(own))
if version ~= before then redis.call('HSET', KEYS[2], 'version', whole(version)) end

local out = {own.state, version, head, watched}
for name, member in pairs(members) do
  out[#out + 1] = name
  out[#out + 1] = whole(member.joined)
  out[#out + 1] = member.process
end
return out
