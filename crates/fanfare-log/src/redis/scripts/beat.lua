-- The heartbeat of a node: shows that it is alive, reports its connections, and sends a probe through the control
-- stream and a channel.
-- KEYS: 1 log, 2 epoch, 3 ids, 4 nodes (sorted set: node -> last heartbeat in ms), 5 control (stream), 6 this node
--       (hash), 7 pubsub (sorted set: node -> when it subscribed to the channels, in ms), 8 members (hash)
-- ARGV: 1 server, 2 node, 3 number of this heartbeat, 4 its connections, 5 TTL of a node in ms, 6 prefix of the nodes'
--       keys, 7 channel of the probe, 8 maximum age of an event in ms, 9 when this node subscribed to the channels in
--       ms, 10 epoch, 11 version of the members that this node knows, 12 after how long a silent member is removed in
--       ms, 13 name of the member
-- Returns the head of the log, the number of live nodes, their connections, 1 if this node is the channel leader, the
-- number and the size of the events in the log, the version of the members and, if the node does not know that version,
-- their names, each with the version at which it became a member; then how far back all ids are remembered in ms, 1 if
-- ids have been forgotten, and 1 if this node was not in the list of nodes: another node may have removed its
-- connections.

local fenced = fence(ARGV[1], ARGV[10])
if fenced then return fenced end
local meta = redis.call('HMGET', KEYS[2], 'version', 'head', 'bytes', 'ids0', 'ids1', 'ids2')
local now, head, version = clock(), tonumber(meta[2] or 0), tonumber(meta[1] or 0)

local members, removed = {}, false
local held = redis.call('HGETALL', KEYS[8])
for i = 1, #held, 2 do
  local member = read_member(held[i + 1])
  if held[i] == ARGV[13] then
    member.seen, member.beat = tonumber(ARGV[11]), now
    redis.call('HSET', KEYS[8], held[i], member_text(member))
  elseif now - member.beat > tonumber(ARGV[12]) then
    -- It can no longer acknowledge, and must join again when it returns.
    redis.call('HDEL', KEYS[8], held[i])
    removed, member = true, nil
  end
  members[held[i]] = member
end
if not members[ARGV[13]] then return redis.error_reply('FENCED this node is no member') end
if removed then
  version = version + 1
  redis.call('HSET', KEYS[2], 'version', whole(version))
end
redis.call('HSET', KEYS[2], 'beat', whole(now))
local new = redis.call('ZADD', KEYS[4], whole(now), ARGV[2])
redis.call('HSET', KEYS[6], 'connections', ARGV[4], 'beat', whole(now))
redis.call('PEXPIRE', KEYS[6], ARGV[5])
tell(KEYS[5], 'k', 'probe', 'n', ARGV[2], 'b', ARGV[3], 'h', whole(head))
redis.call('PUBLISH', ARGV[7], ARGV[3])

local nodes, connections = 0, 0
for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], whole(now - tonumber(ARGV[5])), '+inf')) do
  local count = redis.call('HGET', ARGV[6] .. node, 'connections')
  if count then
    nodes = nodes + 1
    connections = connections + tonumber(count)
  end
end
-- The channel leader is the live node that has been subscribed for longest, because it has missed the fewest messages.
redis.call('ZADD', KEYS[7], ARGV[9], ARGV[2])
local first = 0
for _, node in ipairs(redis.call('ZRANGE', KEYS[7], 0, -1)) do
  if tonumber(redis.call('ZSCORE', KEYS[4], node) or 0) >= now - tonumber(ARGV[5]) / 2 then
    if node == ARGV[2] then first = 1 end
    break
  end
  redis.call('ZREM', KEYS[7], node)
end
-- Events also expire if nothing is published.
if tonumber(ARGV[3]) % 32 == 0 then
  local bytes = tonumber(meta[3] or 0)
  local left = trim(bytes, now, math.huge, math.huge, tonumber(ARGV[8]))
  if left ~= bytes then redis.call('HSET', KEYS[2], 'bytes', whole(left)) end
end
local names = {}
if version ~= tonumber(ARGV[11]) then
  for name, member in pairs(members) do
    names[#names + 1] = name
    names[#names + 1] = whole(member.joined)
  end
end
if not meta[4] then redis.call('HSET', KEYS[2], 'ids0', whole(now)) end
local known_ms = now - tonumber(meta[6] or meta[5] or meta[4] or now)
local events, bytes = redis.call('XLEN', KEYS[1]), tonumber(meta[3] or 0)
return {head, nodes, connections, first, events, bytes, version, names, known_ms, meta[6] and 1 or 0, new}
