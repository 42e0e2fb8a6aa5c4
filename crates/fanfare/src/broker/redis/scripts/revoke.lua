-- Keeps revocations and orders all nodes to obey them, in one step: a node that links later reads what is kept, and a
-- node that is linked hears the order.
-- KEYS: 1 what is kept (sorted set), 2 control (stream)
-- ARGV: 1 'all', or 'news' to order only what was not kept yet, then pairs of a score and a member

local ordered = {}
for i = 2, #ARGV, 2 do
  local news = redis.call('ZADD', KEYS[1], 'GT', 'CH', ARGV[i], ARGV[i + 1]) > 0
  if news or ARGV[1] == 'all' then ordered[#ordered + 1] = i end
end
if #ordered > 256 then
  -- One for each would trim other orders from the stream before nodes have read them.
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', 163840, '*', 'k', 'revocations')
else
  for _, i in ipairs(ordered) do
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', 163840, '*', 'k', 'revoke', 'w', ARGV[i + 1], 's', ARGV[i])
  end
end
return #ordered
