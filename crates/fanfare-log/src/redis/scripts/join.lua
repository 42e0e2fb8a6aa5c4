-- Makes a node a member of a confirmed log. Members may acknowledge events.
-- KEYS: 1 log, 2 epoch, 3 ids, 4 members (hash), 5 control (stream)
-- ARGV: 1 server, 2 epoch, 3 name of the member, 4 version of the members that the node knows, 5 its process ('-':
--       unknown), 6 the silent members that it has watched for long enough, in the form in which this script returned
--       them, 7 after how long a silent member has certainly failed in ms, then the names of members whose process has
--       exited
-- Returns 'i' if it may acknowledge and 'j' if it is still joining, the version of the members, the head of the log,
-- the other members that may acknowledge in the form in which they are watched, and then the name of each member, the
-- version at which it became one, and its process.
--
-- A recovery waits for members. Before a new member may acknowledge, another member that the recovery waits for must
-- know of it: one that has read the list with the new member. If no other member responds, it suffices that all others
-- have been silent for so long that they are no longer informed.

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
-- The confirmation of the server did not record the process.
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
