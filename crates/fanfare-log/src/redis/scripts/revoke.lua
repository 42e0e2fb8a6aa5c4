-- Stores revocations and announces them to all nodes, in one step: a node that connects later reads the stored ones,
-- and a connected node receives the announcement.
-- KEYS: 1 revocations (sorted set), 2 control (stream)
-- ARGV: 1 'all', or 'news' to announce only those that were not stored yet, then pairs of a score and a member
-- Returns the number of announcements.

local ordered = {}
for i = 2, #ARGV, 2 do
  local news = redis.call('ZADD', KEYS[1], 'GT', 'CH', ARGV[i], ARGV[i + 1]) > 0
  if news or ARGV[1] == 'all' then ordered[#ordered + 1] = i end
end
if #ordered > 256 then
  -- One entry for each would trim other commands from the stream before nodes have read them.
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', 163840, '*', 'k', 'revocations')
else
  for _, i in ipairs(ordered) do
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', 163840, '*', 'k', 'revoke', 'w', ARGV[i + 1], 's', ARGV[i])
  end
end
return #ordered
