-- order: the orders of the batch. A record is never changed in place: a change makes a copy, so that a journal entry
--        and a reply keep the order as it was at their moment.
--
-- record  [format, status, channel, buyer, reference, body digest, sequence, created, held until, discount, freight,
--          amount, currency, {{line_id, sku, quantity, unit price}, …}, {{sku, pool, quantity}, …}, version,
--          sequence of the last change, settled at, {{payment_id, amount, currency, fate, at}, …}]
--          as OrderRecord in engine/domain/orders.py; times in milliseconds, money in minor units
local ORDER_FORMAT = 1
local STATUS, CHANNEL, BUYER, REFERENCE, BODY_DIGEST, SEQUENCE = 2, 3, 4, 5, 6, 7
local HELD_UNTIL, AMOUNT, CURRENCY, LINES, UNITS, VERSION, CHANGED_SEQUENCE = 9, 12, 13, 14, 15, 16, 17
local SETTLED_AT, PAYMENTS = 18, 19
local order_status = { HELD = 1, SETTLED = 2, CANCELLED = 3, EXPIRED = 4, REFUND_DUE = 5 }
local order_status_name = { 'held', 'settled', 'cancelled', 'expired', 'refund_due' }
local payment_fate = { SETTLED = 1, TOO_LATE = 2, DUPLICATE = 3 }
local PAYMENTS_MAX = 200 -- payments kept with one order; one more is a CONFLICT, for a person to look at

local order = { records = {}, changed = {}, key = nil }

function order.load(digests)
  local missing = {}
  for _, digest in ipairs(digests) do
    if order.records[digest] == nil then
      order.records[digest] = false
      missing[#missing + 1] = digest
    end
  end
  if #missing == 0 then return end
  for i, packed in ipairs(hash_get(order.key, missing)) do
    if packed then order.records[missing[i]] = cmsgpack.unpack(packed) end
  end
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

function order.find(digest)
  if order.records[digest] == nil then order.load({ digest }) end
  return order.records[digest] or nil
end

-- A copy of an order that a state change is about to make, with the number that this change will take.
function order.next_version(before)
  local after = {}
  for i = 1, PAYMENTS do after[i] = before[i] end
  after[VERSION] = before[VERSION] + 1
  after[CHANGED_SEQUENCE] = journal.next_sequence()
  return after
end

function order.put(digest, record)
  order.records[digest] = record
  order.changed[digest] = true
end

-- Add a payment to a copy made by next_version.
function order.add_payment(record, payment_id, amount, currency, fate)
  local payments = {}
  for i, payment in ipairs(record[PAYMENTS]) do payments[i] = payment end
  payments[#payments + 1] = { payment_id, amount, currency, fate, now }
  record[PAYMENTS] = payments
end

function order.find_payment(record, payment_id)
  for _, payment in ipairs(record[PAYMENTS]) do
    if payment[1] == payment_id then return payment end
  end
  return nil
end

function order.pack()
  local changed = {}
  for digest in pairs(order.changed) do
    changed[#changed + 1] = digest
    changed[#changed + 1] = cmsgpack.pack(order.records[digest])
  end
  return function() call_in_pieces('HSET', order.key, changed) end
end
