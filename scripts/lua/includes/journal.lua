-- journal: the batch's state changes, written as one stream record in the same atom as the changes.
--
-- record  [format, epoch, first sequence, time, entries]; its stream id is the last sequence number, "N-0"
-- entry   [kind, …] as in engine/domain/journal.py; the n-th of a record has the number first + n - 1
local JOURNAL_FORMAT = 1
local journal = { entries = {}, key = nil, trim_below = nil }
local entry = {
  HELD = 1, SETTLED = 2, CANCELLED = 3, EXPIRED = 4, REINSTATED = 5, PAYMENT_TOO_LATE = 6, DUPLICATE_PAYMENT = 7,
  SALE_DEFINED = 8, STOCK_CHANGED = 9, SALE_OPENED = 10, SALE_PAUSED = 11, SALE_RESUMED = 12, SALE_CLOSED = 13,
  SALE_DELETED = 14, PARTITION_OPENED = 15,
}

-- The number that the next state change will take.
function journal.next_sequence()
  return state.sequence + 1
end

-- Append a state change; it takes the next number, which is returned.
function journal.append(change)
  state.set('sequence', state.sequence + 1)
  journal.entries[#journal.entries + 1] = change
  return state.sequence
end

function journal.pack()
  local record
  if #journal.entries > 0 then
    state.set('clock', now)
    local first = state.sequence - #journal.entries + 1
    record = cmsgpack.pack({ JOURNAL_FORMAT, state.epoch, first, now, journal.entries })
  end
  return function()
    if record then redis.call('XADD', journal.key, integer_text(state.sequence) .. '-0', 'record', record) end
    if journal.trim_below then
      redis.call('XTRIM', journal.key, 'MINID', '~', integer_text(math.max(journal.trim_below, 0)))
    end
  end
end
