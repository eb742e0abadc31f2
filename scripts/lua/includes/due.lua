-- due: the open holds by their deadlines, and which of them may end.
local due = { changed = {}, key = KEYS[4], ranges = nil, is_any = nil, at = 1, offset = 0, exhausted = false }

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

-- Whether there is a hold that may end now and that this batch has not come to yet.
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

function due.pack()
  local added, added_count, removed = {}, 0, {}
  local last_deadline, last_text -- a batch's holds have one deadline, but for those made before `hold_ms` changed
  for digest, deadline in pairs(due.changed) do
    if deadline then
      if deadline ~= last_deadline then last_deadline, last_text = deadline, integer_text(deadline) end
      added[added_count + 1], added[added_count + 2] = last_text, digest
      added_count = added_count + 2
    else
      removed[#removed + 1] = digest
    end
  end
  return function()
    call_in_pieces('ZADD', due.key, added)
    call_in_pieces('ZREM', due.key, removed)
  end
end
