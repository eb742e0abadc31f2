-- journal: the batch's state changes, written as one stream record in the same atom as the changes.
--
-- record  [format, epoch, first sequence, time, entries]; its stream id is the last sequence number, "N-0"
-- entry   [kind, …] as in engine/domain/journal.py; the n-th of a record has the number first + n - 1
local JOURNAL_FORMAT = 1
local journal = { count = 0, pieces = {}, piece_count = 0, key = KEYS[8], trim_below = nil }
local entry = {
  HELD = 1, SETTLED = 2, CANCELLED = 3, EXPIRED = 4, REINSTATED = 5, PAYMENT_TOO_LATE = 6, DUPLICATE_PAYMENT = 7,
  SALE_DEFINED = 8, STOCK_CHANGED = 9, SALE_OPENED = 10, SALE_PAUSED = 11, SALE_RESUMED = 12, SALE_CLOSED = 13,
  SALE_DELETED = 14, PARTITION_OPENED = 15,
}

-- The number that the next state change will take.
function journal.next_sequence()
  return state.sequence + 1
end

-- Append a state change that is packed already, in three pieces; it takes the next number.
function journal.append_packed(head, middle, rest)
  local pieces, n = journal.pieces, journal.piece_count
  pieces[n + 1], pieces[n + 2], pieces[n + 3] = head, middle, rest
  journal.piece_count = n + 3
  journal.count = journal.count + 1
  state.sequence = state.sequence + 1
end

-- Append a state change; it takes the next number.
function journal.append(change)
  journal.append_packed('', cmsgpack.pack(change), '')
end

function journal.pack()
  local record
  if journal.count > 0 then
    state.set('sequence', state.sequence)
    state.set('clock', now)
    record = array_header(5)
      .. cmsgpack.pack(JOURNAL_FORMAT, state.epoch, state.sequence - journal.count + 1, now)
      .. pack_array(journal.count, journal.pieces)
  end
  return function()
    if record then redis.call('XADD', journal.key, integer_text(state.sequence) .. '-0', 'record', record) end
    if journal.trim_below then
      redis.call('XTRIM', journal.key, 'MINID', '~', integer_text(math.max(journal.trim_below, 0)))
    end
  end
end
