-- Stores the report of a node, and confirms this server once every node that must report has done so. docs/recovery.md
-- argues why this is safe.
-- KEYS: 1 log, 2 epoch, 3 ids, 4 nodes (sorted set: node -> last heartbeat in ms), 5 reports (hash), 6 pubsub (sorted
--       set: node -> when it subscribed to the channels of this server, in ms), 7 members (hash)
-- ARGV: 1 server, 2 node, 3 a new random epoch (hexadecimal), 4 when this node subscribed to the channels in ms, 5
--       settle time in ms, 6 grace period in ms, 7 how many reports the node knows of, 8 for how many ms from now the
--       node is informed: no node can become a member without its knowledge, 9 '1' if it has entries that could not be
--       restored (lossy), 10 its newest epoch ('-': it has followed no log), 11 for how many ms the node has been
--       reporting here by its own clock, 12 version of the data format, 13 name of the member, 14 its former names
--       separated by commas ('-': none), 15 the version of the members that the node speaks for, then its members as
--       pairs of a name and the version at which it became a member
-- Returns {lineage} once the server is confirmed, otherwise the number of missing nodes and the names of those that
-- have reported.

local meta = redis.call('HMGET', KEYS[2], 'server', 'lineage', 'head', 'recovering', 'since', 'version', 'ids_lost')
if meta[1] == ARGV[1] and same_history(ARGV[1]) then return {meta[2]} end
if not same_history(ARGV[1]) then return redis.error_reply('FENCED this server has another history by now') end
local now = clock()
local since = tonumber(meta[5] or now)
if meta[4] ~= ARGV[1] or since > now then
  if meta[4] ~= ARGV[1] then redis.call('DEL', KEYS[5], KEYS[6]) end
  redis.call('HSET', KEYS[2], 'recovering', ARGV[1], 'since', whole(now))
  since = now
end
redis.call('ZADD', KEYS[6], ARGV[4], ARGV[2])
redis.call('ZADD', KEYS[4], whole(now), ARGV[2])
local own = {ARGV[7], whole(now + tonumber(ARGV[8])), ARGV[9], ARGV[10], ARGV[15], ARGV[14]}
for i = 16, #ARGV do own[#own + 1] = ARGV[i] end
-- A report covers the former names of the node too.
for former in string.gmatch(ARGV[14], '[^,]+') do redis.call('HDEL', KEYS[5], former) end
redis.call('HSET', KEYS[5], ARGV[13], table.concat(own, ' '))
redis.call('PEXPIRE', KEYS[5], 600000)

-- The order of the epochs of the log.
local lineage = meta[2] or ''
local rank, n = {}, 0
for epoch in string.gmatch(lineage, '(%x+):') do
  n = n + 1
  rank[epoch] = n
end

-- The reports, and the members according to the server itself.
local reports, reported, former, count = {}, {}, {}, 0
local all = redis.call('HGETALL', KEYS[5])
for i = 1, #all, 2 do
  local words = {}
  for word in string.gmatch(all[i + 1], '%S+') do words[#words + 1] = word end
  local members = {}
  for name in string.gmatch(words[6], '[^,]+') do former[name] = true end
  for w = 7, #words, 2 do members[words[w]] = tonumber(words[w + 1]) end
  reports[#reports + 1] = {
    knows = tonumber(words[1]), informed = tonumber(words[2]), lossy = words[3] == '1', follows = words[4] ~= '-',
    rank = rank[words[4]], version = tonumber(words[5]), members = members,
  }
  reported[all[i]] = true
  count = count + 1
end
local here = {}
local held = redis.call('HGETALL', KEYS[7])
for i = 1, #held, 2 do
  here[held[i]] = tonumber(string.match(held[i + 1], '^%d+'))
end
local version = tonumber(meta[6] or 0)
local sources = {{rank = n, version = version, members = here}}

-- A node that is not on the newest list is not waited for: everything that it acknowledged is in the windows of the
-- nodes with that list.
local newest, follower, informed, lossy, unaware = sources[1], false, false, false, 0
for _, report in ipairs(reports) do
  if report.knows < count and count > 1 then unaware = unaware + 1 end
  lossy = lossy or report.lossy
  version = math.max(version, report.version)
  if report.follows then
    follower = true
    informed = informed or (report.rank and report.informed > now)
    sources[#sources + 1] = report
    if report.rank and (report.rank > newest.rank or (report.rank == newest.rank and report.version > newest.version)) then
      newest = report
    end
  end
end
local wanted = {}
for _, source in ipairs(sources) do
  for name, joined in pairs(source.members) do
    if source == newest or not source.rank or joined > newest.version then wanted[name] = true end
  end
end
local missing = 0
for name in pairs(wanted) do
  if not reported[name] and not former[name] then missing = missing + 1 end
end

-- No acknowledged event is missing if every node that may have acknowledged one has reported without loss, and at least
-- one reporting node is informed, so no unknown node can have joined. An empty list of members alone proves nothing:
-- writes after it may have been lost, including those of nodes that joined and acknowledged events.
local sure = missing == 0 and not lossy and informed
-- A missing node may be informed for a while yet, so the grace period applies. It does not apply to a new log, which is
-- a different log for all clients.
local wait = ARGV[6]
if (sure and unaware == 0) or (lineage == '' and not follower) then wait = ARGV[5] end
-- The clock of this server may be set, so the node's own measurement counts too.
if math.min(now - since, tonumber(ARGV[11])) < tonumber(wait) then
  local out = {math.max(missing, 1)}
  for name in pairs(reported) do out[#out + 1] = name end
  return out
end

local head = tonumber(meta[3] or 0)
if lineage == '' then
  -- Entries of a log whose lineage is lost cannot be distinguished from those of another log.
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
  if last[1] then
    head = tonumber(string.match(last[1][1], '^0%-(%d+)$'))
    if not head then return redis.error_reply('FOREIGN the stream ' .. KEYS[1] .. ' holds entries that are not fanfare\'s') end
  end
  lineage = ARGV[3] .. ':0!' .. whole(now)
else
  -- The mark of the epoch: '!' if any event may be lost, '?' if only ids of evicted events may be.
  local mark = not sure and '!' .. whole(now) or meta[7] and '?' .. whole(now) or ''
  lineage = lineage .. ',' .. ARGV[3] .. ':' .. whole(head) .. mark
  -- The lineage has at most as many epochs as a node remembers.
  local _, commas = string.gsub(lineage, ',', ',')
  for _ = 64, commas do lineage = string.gsub(lineage, '^[^,]*,', '') end
end
version = version + 1
redis.call('DEL', KEYS[7])
for i, report in ipairs(reports) do
  if report.knows >= count or count == 1 then
    redis.call('HSET', KEYS[7], all[2 * i - 1], whole(version) .. ' ' .. whole(version) .. ' ' .. whole(now) .. ' - i')
  end
end
redis.call('HSET', KEYS[2], 'server', ARGV[1], 'lineage', lineage, 'epoch', ARGV[3], 'head', whole(head), 'version', whole(version), 'format', ARGV[12])
redis.call('HDEL', KEYS[2], 'recovering', 'since', 'ids_lost')
redis.call('DEL', KEYS[5])
return {lineage}
