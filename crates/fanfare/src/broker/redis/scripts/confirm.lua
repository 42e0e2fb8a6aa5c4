-- Reports what a node knows, and confirms this server once every node has reported that is to be waited for.
-- KEYS: 1 log, 2 epoch, 3 ids, 4 nodes (sorted set: node -> last beat in ms), 5 reports (hash), 6 pubsub (sorted set: node -> since when it
--       hears the channels of this server, in ms), 7 members (hash)
-- ARGV: 1 server, 2 node, 3 a fresh epoch (hexadecimal), 4 since when this node hears ms, 5 settle ms, 6 grace ms, 7 how many reports the
--       node knows of, 8 for how many ms from now on nobody can have become a member without this node's knowledge,
--       9 '1' if it holds entries that could not be put back, 10 its newest epoch ('-': it followed no log),
--       11 for how many ms the node has been reporting here by its own clock, 12 the version of what stands in Redis,
--       13 the name under which the node acknowledges, 14 its former names with commas between ('-': none),
--       15 the version of its members, then its members as pairs of a name and the version at which that became one
-- Returns {lineage} once the server is confirmed, else the number of nodes that are waited for and the names of those that have reported.
--
-- Why this is safe stands in docs/recovery.md.

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
-- It speaks for its former names too.
for former in string.gmatch(ARGV[14], '[^,]+') do redis.call('HDEL', KEYS[5], former) end
redis.call('HSET', KEYS[5], ARGV[13], table.concat(own, ' '))
redis.call('PEXPIRE', KEYS[5], 600000)

-- Which of the log's epochs is newer.
local lineage = meta[2] or ''
local rank, n = {}, 0
for epoch in string.gmatch(lineage, '(%x+):') do
  n = n + 1
  rank[epoch] = n
end

-- The reports, and what the server itself knows of its members.
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

-- Someone whom all of the newest list know to be gone is not waited for: what it acknowledged stands in their windows.
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

-- Sure is that nothing acknowledged is missing: everybody who may have acknowledged is here, with what it held, and a node
-- is here without whose knowledge nobody can have become a member. That no member is listed says nothing by itself: all that came
-- after that was written may be lost, nodes that joined and acknowledged included.
local sure = missing == 0 and not lossy and informed
-- Who is missing could believe for a while that nobody can have come and acknowledged without it.
-- A log that begins is another one to everybody.
local wait = ARGV[6]
if (sure and unaware == 0) or (lineage == '' and not follower) then wait = ARGV[5] end
-- This server's clock may be set; the node's measures durations.
if math.min(now - since, tonumber(ARGV[11])) < tonumber(wait) then
  local out = {math.max(missing, 1)}
  for name in pairs(reported) do out[#out + 1] = name end
  return out
end

local head = tonumber(meta[3] or 0)
if lineage == '' then
  -- Entries of a log whose lineage is gone can't be told from another log's.
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
  if last[1] then
    head = tonumber(string.match(last[1][1], '^0%-(%d+)$'))
    if not head then return redis.error_reply('FOREIGN the stream ' .. KEYS[1] .. ' holds entries that are not fanfare\'s') end
  end
  lineage = ARGV[3] .. ':0!' .. whole(now)
else
  -- What may be lost: any event, or only ids of events that the log had evicted.
  local mark = not sure and '!' .. whole(now) or meta[7] and '?' .. whole(now) or ''
  lineage = lineage .. ',' .. ARGV[3] .. ':' .. whole(head) .. mark
  -- As many as a node remembers.
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
