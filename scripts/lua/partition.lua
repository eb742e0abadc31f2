-- partition: applies a batch of commands to one sale's partition, each with its journal entry in the same atom.
--
-- KEYS     the partition's keys, as includes/keys.lua names them
-- ARGV[1]  header, packed: {format, epoch (0: not known), not after (ms), backlog_max (entries), retention (ms), run}
-- ARGV[2]  commands, packed: {{verb, …}, …}, as engine/domain/commands.py
-- Answers  packed: {outcome of the batch, server's time (ms), epoch, run, reason, {{outcome, …}, …}}
--
-- Reads, then decides on what it has read, and writes last: a script that fails has written nothing. Commands of a batch
-- see each other's effects, in their order. FROZEN, STALE_EPOCH, TOO_LATE and PARTITION_MISSING turn the whole batch
-- away before any command is looked at.
local commands = {}
local header

--- @include "includes/codes"
--- @include "includes/redis_calls"
--- @include "includes/state"
--- @include "includes/clock"
--- @include "includes/journal"
--- @include "includes/stock"
--- @include "includes/order"
--- @include "includes/buyer"
--- @include "includes/due"
--- @include "includes/document"
--- @include "includes/definition"
--- @include "includes/keys"
--- @include "includes/commit"
--- @include "includes/units"
--- @include "includes/expire_due"
--- @include "includes/transitions"
--- @include "includes/sale_exists"
--- @include "includes/recent_commands"
--- @include "commands/hold"
--- @include "commands/settle"
--- @include "commands/cancel"
--- @include "commands/expire"
--- @include "commands/get_order"
--- @include "commands/list_buyer_orders"
--- @include "commands/get_availability"
--- @include "commands/get_sale"
--- @include "commands/define"
--- @include "commands/change_stock"
--- @include "commands/transition"
--- @include "commands/delete"
--- @include "commands/apply_schedule"
--- @include "commands/note_persisted"

local CALL_FORMAT = 1

-- Verbs that mean something where there is no sale, or no longer one.
local without_sale = { define = true, note_persisted = true, apply_schedule = true }

local function read_header()
  local fields = cmsgpack.unpack(ARGV[1])
  assert(fields[1] == CALL_FORMAT, 'the call is of a format that this script does not read')
  return {
    epoch = fields[2], not_after = fields[3], backlog_max = fields[4], retention_ms = fields[5], run = fields[6],
  }
end

local function has_definition(batch)
  for _, c in ipairs(batch) do
    if c[1] == 'define' then return true end
  end
  return false
end

-- A partition is only ever made by a definition, and only on a run of Redis that the guard has vouched for.
local function make_partition(run)
  state.set('run', run)
  state.set('epoch', 1)
  state.set('opened_at', now)
  header.epoch = 1
end

-- Why the whole batch is turned away: {code, reason}; nil if it is not.
local function refuse_batch(batch, run, time)
  if not state.exists then
    if header.run ~= run or not has_definition(batch) then return { code.PARTITION_MISSING, '' } end
    make_partition(run)
  end
  if state.retired == 0 then -- a sale that has left Redis for good has nothing that could be in doubt
    if state.frozen ~= '' then return { code.FROZEN, state.frozen } end
    if state.run ~= run then return { code.FROZEN, 'Redis has started anew and has not been reconciled yet' } end
  end
  if header.epoch ~= state.epoch then return { code.STALE_EPOCH, '' } end
  if time > header.not_after then return { code.TOO_LATE, '' } end
  return nil
end

-- Read what the commands name in one go each, rather than one by one.
local function read_ahead(batch)
  local orders, skus, buyers, documents = {}, {}, {}, {}
  local need = {
    order = function(digest) orders[#orders + 1] = digest end,
    sku = function(sku) skus[#skus + 1] = sku end,
    buyer = function(field) buyers[#buyers + 1] = field end,
    document = function(id) documents[#documents + 1] = id end,
  }
  for _, c in ipairs(batch) do
    local command = commands[c[1]]
    assert(command, 'there is no such command')
    if command.needs then command.needs(c, need) end
  end
  order.load(orders)
  stock.load(skus)
  buyer.load(buyers)
  document.load(documents)
end

local function apply(c)
  local answered = recent_commands.reply_to(c)
  if answered then return answered end
  if not sale_exists() and not without_sale[c[1]] then return { code.SALE_NOT_FOUND } end
  local reply = commands[c[1]].apply(c)
  recent_commands.remember(c, reply)
  return reply
end

header = read_header()
local batch = cmsgpack.unpack(ARGV[2])
local run = server_run()
local time = server_time()
name_keys()
state.read()
now = math.max(state.clock, time)

local refused = refuse_batch(batch, run, time)
local replies = {}
if not refused then
  read_ahead(batch)
  apply_schedule()
  for i, c in ipairs(batch) do replies[i] = apply(c) end
  if state.exists or sale_exists() then commit() end -- a definition that was refused makes no partition
end
return cmsgpack.pack({
  refused and refused[1] or code.DONE, time, state.epoch, run, refused and refused[2] or '', replies,
})
