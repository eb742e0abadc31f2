-- due: the open holds by their deadlines, and which of them may end.
--
-- A member of the sorted set is a *bunch*: the digests, one behind the other, of the holds that one batch made with one
-- deadline, its score. The digest of a hold that ends before stays in its bunch, and is passed over when that comes due,
-- which costs less than to take it out. But while few buy, a bunch is one digest, and takes as much room as many do: it
-- goes with its hold.
local DIGEST = BUYER_PART + ORDER_PART
local REMOVED_MAX = 8 -- a batch that ends more holds than that is of a busy time
local BUNCHES_AT_ONCE = 16 -- read in one go: from a kilobyte, of batches of one, to some hundred
local due = {
  added = {}, key = KEYS[4], ranges = nil, is_any = nil, at = 1, offset = 0, exhausted = false,
  bunches = {}, -- read and not taken yet: {digest…, deadline, …}, as Redis gives them
  bunch = 1, taken = 0, -- the place of the first of them in `bunches`, and how many bytes of it are taken
  emptied = {}, -- those of which all or some is taken
  removed = {}, -- digests of holds that have ended; each may be a bunch
}

function due.add(digest, deadline)
  local digests = due.added[deadline]
  if not digests then
    digests = {}
    due.added[deadline] = digests
  end
  digests[#digests + 1] = digest
end

function due.remove(digest)
  due.removed[#due.removed + 1] = digest
end

-- The deadlines that count now: up to now, without those that have a grace which is not over. A grace begins where or
-- after the one before it ends, so that the ranges between them are in order.
local function ranges_due()
  local ranges, from = {}, '-inf'
  local graces = state.graces == '' and {} or cmsgpack.unpack(state.graces)
  for _, grace in ipairs(graces) do
    if now < grace[3] then
      ranges[#ranges + 1] = { from, integer_text(grace[1]) }
      from = '(' .. integer_text(grace[2])
    end
  end
  ranges[#ranges + 1] = { from, integer_text(now) }
  return ranges
end

-- Read the next bunches that are due, the earliest first; none where all have been read. Nothing leaves the index before
-- the batch is committed, so that each is read once a batch.
local function read_bunches()
  due.ranges = due.ranges or ranges_due()
  due.bunches, due.bunch, due.taken = {}, 1, 0
  while #due.bunches == 0 and due.at <= #due.ranges do
    local range = due.ranges[due.at]
    due.bunches = redis.call(
      'ZRANGEBYSCORE', due.key, range[1], range[2], 'WITHSCORES', 'LIMIT', due.offset, BUNCHES_AT_ONCE)
    due.offset = due.offset + #due.bunches / 2
    if #due.bunches < 2 * BUNCHES_AT_ONCE then due.at, due.offset = due.at + 1, 0 end
  end
  due.exhausted = #due.bunches == 0
end

-- Up to `limit` digests of holds that may end now, the earliest first, each given once a batch; and of holds that have
-- ended in another way. They leave the index when the batch is committed.
function due.take(limit)
  local found = {}
  while #found < limit do
    local bunch = due.bunches[due.bunch]
    if not bunch then
      read_bunches()
      if due.exhausted then break end
    else
      found[#found + 1] = string.sub(bunch, due.taken + 1, due.taken + DIGEST)
      if due.taken == 0 then due.emptied[#due.emptied + 1] = bunch end
      due.taken = due.taken + DIGEST
      if due.taken >= #bunch then due.bunch, due.taken = due.bunch + 2, 0 end
    end
  end
  return found
end

-- Whether there may be a hold that may end now and that this batch has not come to yet.
function due.any()
  if due.is_any == nil then
    due.ranges = due.ranges or ranges_due()
    due.is_any = false
    for _, range in ipairs(due.ranges) do
      local count = redis.call('ZCOUNT', due.key, range[1], range[2])
      due.is_any = due.is_any or count > 0
    end
  end
  return due.is_any
end

-- A bunch is put back under its deadline without what was taken of it.
function due.pack()
  local added = {}
  for deadline, digests in pairs(due.added) do
    added[#added + 1] = integer_text(deadline)
    added[#added + 1] = table.concat(digests)
  end
  if due.taken > 0 then
    added[#added + 1] = due.bunches[due.bunch + 1]
    added[#added + 1] = string.sub(due.bunches[due.bunch], due.taken + 1)
  end
  return function()
    call_in_pieces('ZREM', due.key, due.emptied)
    if #due.removed <= REMOVED_MAX then call_in_pieces('ZREM', due.key, due.removed) end
    call_in_pieces('ZADD', due.key, added)
  end
end
