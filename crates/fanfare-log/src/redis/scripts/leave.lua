-- Removes a node that shuts down from all lists. It acknowledges nothing after this, so everything that it acknowledged
-- precedes it in the log.
-- KEYS: 1 log, 2 epoch, 3 ids, 4 members (hash), 5 nodes (sorted set), 6 pubsub (sorted set), 7 this node (hash)
-- ARGV: 1 server, 2 epoch, 3 node, then the names under which it acknowledged

-- A heartbeat of 0 marks the node as dead, so another node removes the connections that it did not remove itself. The
-- error is ignored: a full Redis must not prevent the node from leaving.
redis.pcall('ZADD', KEYS[5], 0, ARGV[3])
redis.call('ZREM', KEYS[6], ARGV[3])
redis.call('DEL', KEYS[7])
-- A server that is not confirmed may lack what the node acknowledged, so the node stays a member there.
local fenced = fence(ARGV[1], ARGV[2])
if fenced then return fenced end
if redis.call('HDEL', KEYS[4], unpack(ARGV, 4)) > 0 then redis.call('HINCRBY', KEYS[2], 'version', 1) end
return 1
