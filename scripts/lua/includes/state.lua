-- state: the partition's own hash, read once and written once a batch.
--
-- field            meaning
-- status           draft, open, paused, closed, deleted ('' in a partition that only says why it is frozen)
-- epoch            raised by the guard each time it opens the partition
-- run              the run of Redis (run_id) that the guard opened it on
-- frozen           why it is frozen; empty if it is not
-- sequence         the last sequence number given; dense
-- clock            the time of the last state change, milliseconds: the partition's time never steps back
-- persisted        the last sequence number that the ledger is known to hold
-- version          counts the operators' changes: the sale's ETag
-- currency, hold_ms, buyer_limit (0: none), opens_at, closes_at (0: none), closed_at (0: not closed)
-- style_limits     packed map of style → units
-- ever_held        1 once a hold has succeeded: the currency is fixed from then on
-- recent_commands  packed: operators' commands of the last minutes, as in includes/recent_commands.lua
-- opened_at        when the guard last opened the partition
-- graces           packed list of {from, to, until}: deadlines behind `from` and up to `to` are extended to `until`
-- retired          1 once the sale's orders have left Redis for good
local state = { changed = {}, key = nil }

local STATE_TEXTS = { 'status', 'run', 'frozen', 'currency', 'style_limits', 'recent_commands', 'graces' }
local STATE_NUMBERS = {
  'epoch', 'sequence', 'clock', 'persisted', 'version', 'hold_ms', 'buyer_limit', 'opens_at', 'closes_at', 'closed_at',
  'ever_held', 'opened_at', 'retired',
}

function state.read()
  local fields = {}
  for _, name in ipairs(STATE_TEXTS) do fields[#fields + 1] = name end
  for _, name in ipairs(STATE_NUMBERS) do fields[#fields + 1] = name end
  local values = redis.call('HMGET', state.key, unpack(fields))
  state.exists = redis.call('EXISTS', state.key) == 1
  for i, name in ipairs(fields) do
    if i <= #STATE_TEXTS then
      state[name] = values[i] or ''
    else
      state[name] = tonumber(values[i] or 0)
    end
  end
end

-- Change a field; it is written with everything else when the batch is committed.
function state.set(name, value)
  state[name] = value
  state.changed[name] = true
end

function state.pack()
  local arguments = {}
  for name in pairs(state.changed) do
    local value = state[name]
    arguments[#arguments + 1] = name
    arguments[#arguments + 1] = type(value) == 'number' and integer_text(value) or value
  end
  return function() call_in_pieces('HSET', state.key, arguments) end
end
