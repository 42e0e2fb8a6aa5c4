-- Removes the entries behind the head of the log, because a node found one there that is not an event.
-- KEYS: 1 log, 2 epoch, 3 ids
-- ARGV: 1 server, 2 epoch, 3 the sequence up to which that node has read: entries up to it keep their positions
-- Returns the head of the log.

local fenced = fence(ARGV[1], ARGV[2])
if fenced then return fenced end
local head, taken = tonumber(redis.call('HGET', KEYS[2], 'head') or 0), tonumber(ARGV[3])
if taken > head and taken <= head + JUMP and #redis.call('XRANGE', KEYS[1], '0-' .. whole(taken), '0-' .. whole(taken)) > 0 then
  head = taken
  redis.call('HSET', KEYS[2], 'head', whole(head))
end
remove_behind(head)
return head
