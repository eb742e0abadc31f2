-- due: the open holds by their deadlines, and which of them may end.
local due = { changed = {}, key = nil, ranges = nil, at = 1, offset = 0, exhausted = false }

function due.add(digest, deadline)
  due.changed[digest] = deadline
end

function due.remove(digest)
  due.changed[digest] = false
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

-- Up to `limit` digests of holds that may end now, the earliest first. Each is given once a batch, because nothing
-- leaves the index before the batch is committed.
function due.take(limit)
  due.ranges = due.ranges or ranges_due()
  local found = {}
  while #found < limit and not due.exhausted do
    local range, wanted = due.ranges[due.at], limit - #found
    local piece = redis.call('ZRANGEBYSCORE', due.key, range[1], range[2], 'LIMIT', due.offset, wanted)
    for _, digest in ipairs(piece) do found[#found + 1] = digest end
    due.offset = due.offset + #piece
    if #piece < wanted then
      due.at, due.offset = due.at + 1, 0
      due.exhausted = due.at > #due.ranges
    end
  end
  return found
end

function due.pack()
  local added, removed = {}, {}
  for digest, deadline in pairs(due.changed) do
    if deadline then
      added[#added + 1] = integer_text(deadline)
      added[#added + 1] = digest
    else
      removed[#removed + 1] = digest
    end
  end
  return function()
    call_in_pieces('ZADD', due.key, added)
    call_in_pieces('ZREM', due.key, removed)
  end
end
