-- partition: applies a batch of commands to one sale's partition, each with its journal entry in the same atom.
--
-- KEYS     the partition's keys, in the order of PartitionKeys in engine/partition/keyspace.py
-- ARGV[1]  header, packed: {format, epoch (0: not known), not after (ms), backlog_max (entries), retention (ms), run}
-- ARGV[2]  commands, packed: {command, …}, each the bytes of its verb and fields, one behind the other, as in
--          engine/domain/commands.py
-- Answers  packed: {outcome of the batch, server's time (ms), epoch, run, reason, {{outcome, …}, …}}
--          A verb's file says what it takes and answers.
--
-- Reads, then decides on what it has read, and writes last: a script that fails has written nothing. Commands of a batch
-- see each other's effects, in their order. FROZEN, STALE_EPOCH, TOO_LATE and PARTITION_MISSING turn the whole batch
-- away before any command is looked at.
-- Lua makes every function anew for each call, and that is most of what a call costs before its first command. So what
-- only some verbs need is made only if the batch has one of them.
local commands = {}
local header
local document, definition, recent_commands -- of the operators' commands
local take_units, end_hold, expire_due, reclaim, short_sku_after_reclaiming -- of those that move a buyer's units
local batch = cmsgpack.unpack(ARGV[2])
local verbs, verb_of, first_of = {}, {}, {} -- those that the batch has; each command's, and the first of its fields
for i, packed in ipairs(batch) do
  local _, verb, first = cmsgpack.unpack_limit(packed, 2)
  verbs[verb], verb_of[i], first_of[i] = true, verb, first
end
local takes_id = verbs.define or verbs.open or verbs.pause or verbs.resume or verbs.close or verbs.delete

--- @include "includes/codes"
--- @include "includes/redis_calls"
--- @include "includes/packing"
--- @include "includes/state"
--- @include "includes/clock"
--- @include "includes/journal"
--- @include "includes/stock"
--- @include "includes/order"
--- @include "includes/buyer"
--- @include "includes/due"
if verbs.hold or verbs.settle or verbs.cancel or verbs.expire then
--- @include "includes/units"
--- @include "includes/end_hold"
--- @include "includes/expire_due"
end
--- @include "includes/transitions"
--- @include "includes/sale_refusal"
if verbs.change_stock or verbs.delete then
--- @include "includes/document"
end
if verbs.define or verbs.delete or verbs.get_sale then
--- @include "includes/definition"
end
if takes_id then
--- @include "includes/recent_commands"
end
--- @include "includes/commit"

if verbs.hold then
--- @include "commands/hold"
end
if verbs.check_short then
--- @include "commands/check_short"
end
if verbs.settle then
--- @include "commands/settle"
end
if verbs.cancel then
--- @include "commands/cancel"
end
if verbs.expire then
--- @include "commands/expire"
end
if verbs.get_order then
--- @include "commands/get_order"
end
if verbs.list_buyer_orders then
--- @include "commands/list_buyer_orders"
end
if verbs.get_availability then
--- @include "commands/get_availability"
end
if verbs.get_sale then
--- @include "commands/get_sale"
end
if verbs.define then
--- @include "commands/define"
end
if verbs.change_stock then
--- @include "commands/change_stock"
end
if verbs.open or verbs.pause or verbs.resume or verbs.close then
--- @include "commands/transition"
end
if verbs.delete then
--- @include "commands/delete"
end
if verbs.apply_schedule then
--- @include "commands/apply_schedule"
end
if verbs.note_persisted then
--- @include "commands/note_persisted"
end

local CALL_FORMAT = 3

-- Verbs that mean something where there is no sale, or no longer one.
local without_sale = { define = true, note_persisted = true, apply_schedule = true }

local function read_header()
  local fields = cmsgpack.unpack(ARGV[1])
  assert(fields[1] == CALL_FORMAT, 'the call is of a format that this script does not read')
  return {
    epoch = fields[2], not_after = fields[3], backlog_max = fields[4], retention_ms = fields[5], run = fields[6],
  }
end

-- A partition is only ever made by a definition, and only on a run of Redis that the guard has vouched for.
local function make_partition(run)
  state.set('run', run)
  state.set('epoch', 1)
  state.set('made_at', now)
  state.set('opened_at', now)
  header.epoch = 1
end

-- Why the whole batch is turned away: {code, reason}; nil if it is not.
local function refuse_batch(run, time)
  if not state.exists then
    if header.run ~= run or not verbs.define then return { code.PARTITION_MISSING, '' } end
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

-- Read what the commands name in one go each, rather than one by one: the order or the buyer that is the first field of
-- most, and what the others say that they need.
local function read_ahead()
  local wanted = { order = {}, buyer = {}, sku = {}, document = {} }
  for i, packed in ipairs(batch) do
    local command = commands[verb_of[i]]
    if not command then error('there is no such command') end
    if command.reads then
      local names = wanted[command.reads]
      names[#names + 1] = first_of[i]
    elseif command.needs then
      command.needs(wanted, select(2, cmsgpack.unpack(packed)))
    end
  end
  buyer.load(wanted.buyer)
  order.load(wanted.order)
  stock.load(wanted.sku)
  if document then document.load(wanted.document) end
end

-- Apply one command. Returns its reply, packed.
local function apply(verb, ...)
  local answered = takes_id and recent_commands.reply_to(verb, ...)
  if answered then return cmsgpack.pack(answered) end
  if not sale_exists() and not without_sale[verb] then return cmsgpack.pack({ code.SALE_NOT_FOUND }) end
  local reply, packed = commands[verb].apply(...) -- a verb may have packed it already
  if takes_id then recent_commands.remember(reply, verb, ...) end
  return packed or cmsgpack.pack(reply)
end

header = read_header()
local run = server_run()
local time = server_time()
state.read()
now = math.max(state.clock, time)

local refused = refuse_batch(run, time)
local replies, count = {}, 0
if not refused then
  read_ahead()
  apply_schedule()
  for i, packed in ipairs(batch) do replies[i] = apply(cmsgpack.unpack(packed)) end
  count = #batch
  if state.exists or sale_exists() then commit() end -- a definition that was refused makes no partition
end
return array_header(6) .. cmsgpack.pack(
  refused and refused[1] or code.DONE, time, state.epoch, run, refused and refused[2] or ''
) .. pack_array(count, replies)
