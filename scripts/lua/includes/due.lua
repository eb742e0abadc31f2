-- due: the open holds by their deadlines, and what happens to those whose deadline has passed.
local due = { changed = {}, key = nil, offset = 0, exhausted = false }

function due.add(digest, deadline)
  due.changed[digest] = deadline
end

function due.remove(digest)
  due.changed[digest] = false
end

-- Up to `limit` digests of holds that may end now, the earliest first. Each is given once a batch, because nothing
-- leaves the index before the batch is committed. Deadlines that passed while the partition was frozen wait for the
-- end of their grace.
function due.take(limit)
  if due.exhausted then return {} end
  local from = '-inf'
  if now < state.grace_until then from = '(' .. integer_text(state.opened_at) end
  local found = redis.call('ZRANGEBYSCORE', due.key, from, integer_text(now), 'LIMIT', due.offset, limit)
  due.offset = due.offset + #found
  due.exhausted = #found < limit
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
