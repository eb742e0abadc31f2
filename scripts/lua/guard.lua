-- guard: freezes a partition, opens one that has been reconciled under the next epoch, or takes one out of Redis whose
--        sale's time is over. It passes by the checks of run, epoch and freeze; only the worker calls it.
--
-- KEYS     the partition's keys, in the order of PartitionKeys in engine/partition/keyspace.py
-- ARGV     freeze, reason, whether also a partition that is not there (1 or 0)
--          open, epoch and sequence that were reconciled, next epoch, run, reason, grace (ms)
--          retire, sequence that the ledger holds
-- Answers  1, or 0 where the partition is no longer what was looked at

--- @include "includes/redis_calls"
--- @include "includes/packing"
--- @include "includes/state"
--- @include "includes/clock"
--- @include "includes/journal"
--- @include "includes/stock"

-- Deadlines that passed while the partition was frozen get a grace, so that buyers who could not pay meanwhile can:
-- those behind its last state change, for before that it was open. Graces that are not over stay as they are.
-- Returns the graces in force, and the new one: {from, to, until}, zeros if no deadline passed, be it of a hold that was
-- settled or cancelled before.
local function extend_graces(due_key, grace_ms)
  local graces, new = {}, { 0, 0, 0 }
  for _, grace in ipairs(state.graces == '' and {} or cmsgpack.unpack(state.graces)) do
    if now < grace[3] then graces[#graces + 1] = grace end
  end
  if redis.call('ZCOUNT', due_key, '(' .. integer_text(state.clock), integer_text(now)) > 0 then
    new = { state.clock, now, now + grace_ms }
    graces[#graces + 1] = new
  end
  return graces, new
end

local function open(epoch, sequence, next_epoch, run, reason, grace_ms)
  if state.epoch ~= epoch or state.sequence ~= sequence or run ~= server_run() then return 0 end
  now = math.max(state.clock, server_time())
  state.set('epoch', next_epoch)
  state.set('run', run)
  state.set('frozen', '')
  state.set('opened_at', now)
  local graces, grace = extend_graces(KEYS[4], grace_ms)
  state.set('graces', #graces > 0 and cmsgpack.pack(graces) or '')
  journal.append({ entry.PARTITION_OPENED, state.epoch, reason, grace[1], grace[3] })
  local write_journal = journal.pack()
  local write_state = state.pack()
  write_journal()
  write_state()
  return 1
end

local function freeze(reason, even_if_missing)
  if not state.exists and not even_if_missing then return 0 end
  state.set('frozen', reason)
  state.pack()()
  return 1
end

-- Whether units of any SKU are held: the index may still name orders that have ended.
local function has_open_holds()
  for _, packed in ipairs(redis.call('HVALS', KEYS[2])) do
    if cmsgpack.unpack(packed)[HELD] > 0 then return true end
  end
  return false
end

-- Only the state is kept, so that the sale's id is not taken for one that was never used.
local function retire(sequence)
  local is_over = state.status == 'closed' or state.status == 'deleted'
  if not is_over or state.sequence ~= sequence or has_open_holds() then return 0 end
  state.set('retired', 1)
  local write_state = state.pack()
  redis.call('UNLINK', unpack(KEYS, 2))
  write_state()
  return 1
end

state.read()
if ARGV[1] == 'freeze' then return freeze(ARGV[2], ARGV[3] == '1') end
if ARGV[1] == 'retire' then return retire(tonumber(ARGV[2])) end
return open(
  tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], ARGV[6], tonumber(ARGV[7]))
