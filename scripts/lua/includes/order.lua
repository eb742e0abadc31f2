-- order: the orders of the batch, each found by its digest: 12 characters of its buyer, 12 of its own. A record is never
--        changed in place: a change makes a copy, so that a journal entry and a reply keep the order as it was.
--
-- record  [format, status, channel, buyer, reference, body digest, sequence, created, held until, discount, freight,
--          amount, currency, {{line_id, sku, quantity, unit price}, …}, {{sku, pool, quantity}, …}, version,
--          sequence of the last change, settled at, {{payment_id, amount, currency, fate, at}, …}]
--          as OrderRecord in engine/domain/orders.py; times in milliseconds, money in minor units. No units at all means
--          that each line's are from `shared`, as almost all are.
-- ended   an order that has ended, as it is kept: what repeats need, and no more
--         [format, status, channel, buyer, reference, body digest, sequence, created, seconds held for, discount,
--          freight, amount, {line_id, sku, quantity, unit price, …}, version, changes of the sale until its last one,
--          id of the payment that settled it, milliseconds until then]
local ORDER_FORMAT, ENDED_FORMAT = 2, 3
local STATUS, CHANNEL, BUYER, REFERENCE, BODY_DIGEST, SEQUENCE, CREATED = 2, 3, 4, 5, 6, 7, 8
local HELD_UNTIL, DISCOUNT, FREIGHT, AMOUNT, CURRENCY, LINES, UNITS, VERSION = 9, 10, 11, 12, 13, 14, 15, 16
local CHANGED_SEQUENCE, SETTLED_AT, PAYMENTS = 17, 18, 19
local order_status = { HELD = 1, SETTLED = 2, CANCELLED = 3, EXPIRED = 4, REFUND_DUE = 5 }
local order_status_name = { 'held', 'settled', 'cancelled', 'expired', 'refund_due' }
local payment_fate = { SETTLED = 1, TOO_LATE = 2, DUPLICATE = 3 }
local ENDED_HEAD = array_header(17)
local PAYMENTS_MAX = 200 -- payments kept with one order; one more is a CONFLICT, for a person to look at

-- records: by digest, a record, false where there is none, or the bytes of one that nobody has looked into yet.
-- moved: those that do not lie in their buyer's row (includes/buyer.lua), but in a hash of their own.
local buyer -- includes/buyer.lua: the two lean on each other
local order = { records = {}, moved = {}, changed = {}, key = KEYS[3] }

local function read_ended(e)
  local record = {
    ORDER_FORMAT, e[2], e[3], e[4], e[5], e[6], e[7], e[8], e[8] + e[9] * 1000, e[10], e[11], e[12], state.currency,
    {}, {}, e[14], e[7] + e[15], 0, {},
  }
  local flat = e[13]
  for i = 1, #flat, 4 do
    record[LINES][#record[LINES] + 1] = { flat[i], flat[i + 1], flat[i + 2], flat[i + 3] }
  end
  if e[16] ~= '' then
    record[SETTLED_AT] = record[CREATED] + e[17]
    record[PAYMENTS][1] = { e[16], record[AMOUNT], record[CURRENCY], payment_fate.SETTLED, record[SETTLED_AT] }
  end
  return record
end

-- The bytes to keep of a record. What is odd is kept whole: payments due for refund, units of a channel's own pool.
local function pack_to_keep(record)
  local payments, flat = record[PAYMENTS], {}
  local is_plain = #record[UNITS] == 0 and record[CURRENCY] == state.currency
    and (#payments == 0 or #payments == 1 and payments[1][4] == payment_fate.SETTLED)
  if record[STATUS] == order_status.HELD or not is_plain then return cmsgpack.pack(record) end
  for _, line in ipairs(record[LINES]) do
    local n = #flat
    flat[n + 1], flat[n + 2], flat[n + 3], flat[n + 4] = line[1], line[2], line[3], line[4]
  end
  return ENDED_HEAD .. cmsgpack.pack(
    ENDED_FORMAT, record[STATUS], record[CHANNEL], record[BUYER], record[REFERENCE], record[BODY_DIGEST],
    record[SEQUENCE], record[CREATED], (record[HELD_UNTIL] - record[CREATED]) / 1000, record[DISCOUNT],
    record[FREIGHT], record[AMOUNT], flat, record[VERSION], record[CHANGED_SEQUENCE] - record[SEQUENCE],
    payments[1] and payments[1][1] or '', payments[1] and record[SETTLED_AT] - record[CREATED] or 0)
end

-- Read the orders that are named, those that moved out of their buyers' rows too.
function order.load(digests)
  local buyers, moved = {}, {}
  for i, digest in ipairs(digests) do buyers[i] = buyer.part_of(digest) end
  buyer.load(buyers)
  for i, digest in ipairs(digests) do
    if order.records[digest] == nil then
      order.records[digest] = false
      if buyer.has_moved_orders(buyers[i]) then moved[#moved + 1] = digest end
    end
  end
  for i, packed in ipairs(hash_get(order.key, moved)) do
    if packed then
      order.records[moved[i]] = packed
      order.moved[moved[i]] = true
    end
  end
end

function order.find(digest)
  if order.records[digest] == nil then order.load({ digest }) end
  local record = order.records[digest]
  if not record then return nil end
  if type(record) == 'string' then record = cmsgpack.unpack(record) end
  if record[1] == ENDED_FORMAT then record = read_ended(record) end
  order.records[digest] = record
  return record
end

-- The order, or nil; also nil once its time to be read here is over.
function order.get(digest, retention_ms)
  if state.closed_at > 0 and now >= state.closed_at + retention_ms then return nil end
  return order.find(digest)
end

-- The order if it can be read here, or is still an open hold: that one can be paid or cancelled for as long as it is.
function order.get_to_end(digest, retention_ms)
  local record = order.find(digest)
  if record and record[STATUS] == order_status.HELD then return record end
  return order.get(digest, retention_ms)
end

-- Where the order's units come from: {{sku, pool, quantity}, …}.
function order.units(record)
  if #record[UNITS] > 0 then return record[UNITS] end
  local units = {}
  for i, line in ipairs(record[LINES]) do units[i] = { line[2], 'shared', line[3] } end
  return units
end

-- A copy of an order that a state change is about to make, with the number that this change will take.
function order.next_version(before)
  local after = { unpack(before, 1, PAYMENTS) }
  after[VERSION] = before[VERSION] + 1
  after[CHANGED_SEQUENCE] = journal.next_sequence()
  return after
end

-- Put a new order, as the bytes of its record, into its buyer's row.
function order.insert(buyer_part, order_part, digest, packed)
  order.records[digest] = packed
  buyer.add_order(buyer_part, order_part, digest, packed)
end

-- Put an order's next state in the place of the one before, with its journal entry: {kind, digest, order}, and `more`,
-- packed, behind them where the kind has it. Returns the order, packed.
function order.replace(digest, after, kind, more)
  local before, packed = order.records[digest], cmsgpack.pack(after)
  order.records[digest] = after
  journal.append_packed(array_header(more and 4 or 3) .. cmsgpack.pack(kind, digest), packed .. (more or ''))
  if order.moved[digest] then
    order.changed[digest] = true
    buyer.recount_moved(digest, before, after)
  else
    buyer.mark_changed(digest)
  end
  return packed
end

-- Take an order out of its buyer's row, into the hash of those that have moved.
function order.move_out(digest)
  order.moved[digest] = true
  order.changed[digest] = true
  return order.find(digest)
end

-- Whether an order's units count for its buyer's limits.
function order.counts(record)
  return record[STATUS] == order_status.HELD or record[STATUS] == order_status.SETTLED
end

-- Add a payment {payment_id, amount, currency} to a copy made by next_version.
function order.add_payment(record, payment, fate)
  local payments = {}
  for i, earlier in ipairs(record[PAYMENTS]) do payments[i] = earlier end
  payments[#payments + 1] = { payment[1], payment[2], payment[3], fate, now }
  record[PAYMENTS] = payments
end

function order.find_payment(record, payment_id)
  for _, payment in ipairs(record[PAYMENTS]) do
    if payment[1] == payment_id then return payment end
  end
  return nil
end

-- The bytes to keep of an order of this batch.
function order.packed(digest)
  local record = order.records[digest]
  if type(record) == 'string' then return record end
  if record[1] == ENDED_FORMAT then return cmsgpack.pack(record) end
  return pack_to_keep(record)
end

function order.pack()
  local changed = {}
  for digest in pairs(order.changed) do
    changed[#changed + 1] = digest
    changed[#changed + 1] = order.packed(digest)
  end
  return function() call_in_pieces('HSET', order.key, changed) end
end
