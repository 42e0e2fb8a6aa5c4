-- Reports that a node has put back what it can, and confirms this server once every node has that can be waited for.
-- KEYS: 1 log, 2 epoch, 3 ids, 4 nodes (sorted set: node -> last beat in ms), 5 recovery (set of nodes),
--       6 ears (sorted set: node -> since when it hears the channels of this server, in ms)
-- ARGV: 1 server, 2 node, 3 a fresh epoch (hexadecimal), 4 settle ms, 5 grace ms, 6 how long before the last beat
--       a node must have been heard of to be waited for ms, 7 since when this node hears ms
-- Returns the lineage if the server is confirmed, else the number of nodes that are waited for.

local meta = redis.call('HMGET', KEYS[2], 'server', 'lineage', 'head', 'beat', 'recovering', 'since')
if meta[1] == ARGV[1] then return meta[2] end
local now = clock()
local since = tonumber(meta[6] or now)
if meta[5] ~= ARGV[1] then
  redis.call('DEL', KEYS[5], KEYS[6])
  redis.call('HSET', KEYS[2], 'recovering', ARGV[1], 'since', whole(now))
  since = now
end
redis.call('SADD', KEYS[5], ARGV[2])
redis.call('ZADD', KEYS[6], ARGV[7], ARGV[2])
redis.call('PEXPIRE', KEYS[5], 600000)

local missing = 0
local alive = tonumber(meta[4] or now) - tonumber(ARGV[6])
for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], whole(math.max(alive, 0)), '+inf')) do
  if redis.call('SISMEMBER', KEYS[5], node) == 0 then missing = missing + 1 end
end
redis.call('ZADD', KEYS[4], whole(now), ARGV[2])
-- A log that begins has nobody to wait for; one that goes on gives the others time to find this server.
local settle = meta[2] and tonumber(ARGV[4]) or 0
local waited = now - since
if waited < settle or (missing > 0 and waited < tonumber(ARGV[5])) then return math.max(missing, 1) end

local head = tonumber(meta[3] or 0)
local lineage
if not meta[2] then
  -- Entries of a log whose lineage is gone can't be told from another log's.
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
  if last[1] then
    head = tonumber(string.match(last[1][1], '^0%-(%d+)$'))
    if not head then return redis.error_reply('FOREIGN the stream ' .. KEYS[1] .. ' holds entries that are not fanfare\'s') end
  end
  lineage = ARGV[3] .. ':0'
else
  local mark = missing > 0 and '!' or ''
  lineage = meta[2] .. ',' .. ARGV[3] .. ':' .. whole(head) .. mark
  -- As many as a node remembers.
  local _, commas = string.gsub(lineage, ',', ',')
  for _ = 64, commas do lineage = string.gsub(lineage, '^[^,]*,', '') end
end
redis.call('HSET', KEYS[2], 'server', ARGV[1], 'lineage', lineage, 'head', whole(head))
redis.call('HDEL', KEYS[2], 'recovering', 'since')
redis.call('DEL', KEYS[5])
return lineage
