-- Takes a node that ends off all lists. It has acknowledged everything that it will, and all of that stands before this.
-- KEYS: 1 log, 2 epoch, 3 ids, 4 members (hash), 5 nodes (sorted set), 6 pubsub (sorted set), 7 this node (hash)
-- ARGV: 1 server, 2 epoch, 3 node, then the names under which it acknowledged

-- It counts as one that has been silent for long, so that another node sweeps up the connections that it did not take off the list.
-- Redis may be full, which must not keep it from taking leave.
redis.pcall('ZADD', KEYS[5], 0, ARGV[3])
redis.call('ZREM', KEYS[6], ARGV[3])
redis.call('DEL', KEYS[7])
-- A server that is not confirmed may lack what the node acknowledged.
local fenced = fence(ARGV[1], ARGV[2])
if fenced then return fenced end
if redis.call('HDEL', KEYS[4], unpack(ARGV, 4)) > 0 then redis.call('HINCRBY', KEYS[2], 'version', 1) end
return 1
