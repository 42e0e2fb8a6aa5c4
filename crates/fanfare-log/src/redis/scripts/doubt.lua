-- Revokes the confirmation of a server that lacks data which a node knows it had, so that all nodes restore their
-- entries.
-- KEYS: 1 log, 2 epoch, 3 ids
-- ARGV: 1 server, 2 the lineage and 3 the head that the node found here

local meta = redis.call('HMGET', KEYS[2], 'server', 'lineage', 'head')
if meta[1] ~= ARGV[1] or meta[2] ~= ARGV[2] or tonumber(meta[3] or 0) > tonumber(ARGV[3]) then return 0 end
return redis.call('HDEL', KEYS[2], 'server')
