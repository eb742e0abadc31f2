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
-- made_at          when the partition was made; times of ended orders count from it
-- opened_at        when the guard last opened the partition
-- graces           packed list of {from, to, until}: deadlines behind `from` and up to `to` are extended to `until`
-- retired          1 once the sale's orders have left Redis for good
local state = {
  status = '', run = '', frozen = '', currency = '', style_limits = '', recent_commands = '', graces = '',
  epoch = 0, sequence = 0, clock = 0, persisted = 0, version = 0, hold_ms = 0, buyer_limit = 0, opens_at = 0,
  closes_at = 0, closed_at = 0, ever_held = 0, made_at = 0, opened_at = 0,
  retired = 0,
  changed = {}, key = KEYS[1],
}

-- A field that is not there has the value above, which also says whether it is a number.
function state.read()
  local fields = redis.call('HGETALL', state.key)
  state.exists = #fields > 0
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    state[name] = state[name] == 0 and tonumber(value) or value
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
