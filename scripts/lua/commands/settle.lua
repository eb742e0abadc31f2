-- settle: confirm an order's payment, in the order of the contract's §4.
--
-- [settle, digest, payment_id, amount, currency]
-- DONE, REPEATED, DUPLICATE_PAYMENT, PAYMENT_TOO_LATE {order, recorded before} · ORDER_NOT_FOUND ·
-- IDEMPOTENCY_KEY_REUSED · AMOUNT_MISMATCH {amount, currency} · CONFLICT {field, reason} · DUE_HOLDS_REMAIN
commands.settle = {}

function commands.settle.needs(c, need)
  need.order(c[2])
end

local outcome_of_fate = {
  [payment_fate.SETTLED] = code.REPEATED,
  [payment_fate.TOO_LATE] = code.PAYMENT_TOO_LATE,
  [payment_fate.DUPLICATE] = code.DUPLICATE_PAYMENT,
}

-- Keep a payment that settles nothing, as due for refund.
local function record_due_for_refund(digest, before, c, fate, status, kind)
  if #before[PAYMENTS] >= PAYMENTS_MAX then
    return { code.CONFLICT, 'payment_id', 'the order has as many payments as can be kept' }
  end
  local after = order.next_version(before)
  after[STATUS] = status
  order.add_payment(after, c[3], c[4], c[5], fate)
  order.put(digest, after)
  journal.append({ kind, digest, after })
  return { outcome_of_fate[fate], after, false }
end

local function settled_by(before, c)
  local after = order.next_version(before)
  after[STATUS] = order_status.SETTLED
  after[SETTLED_AT] = now
  order.add_payment(after, c[3], c[4], c[5], payment_fate.SETTLED)
  return after
end

local function settle_held(digest, before, c)
  local after = settled_by(before, c)
  for _, held in ipairs(before[UNITS]) do
    stock.row(held[1])
    stock.count(held[1], HELD, -held[3])
    stock.count(held[1], SETTLED, held[3])
  end
  due.remove(digest)
  order.put(digest, after)
  journal.append({ entry.SETTLED, digest, after })
  return { code.DONE, after, false }
end

-- A payment for a hold that has ended takes the units anew if they are there, whatever the buyer's limit.
local function settle_ended(digest, before, c)
  local units, more_due
  if state.status ~= 'closed' then
    -- a SKU that has left the sale since has no units to take
    local all_there = true
    for _, line in ipairs(before[LINES]) do all_there = all_there and stock.row(line[2]) ~= nil end
    if all_there then
      local short_sku
      units, short_sku, more_due = find_units_reclaiming(before[LINES], before[CHANNEL])
    end
  end
  if more_due then return { code.DUE_HOLDS_REMAIN } end
  if not units then
    return record_due_for_refund(
      digest, before, c, payment_fate.TOO_LATE, order_status.REFUND_DUE, entry.PAYMENT_TOO_LATE)
  end
  local after = settled_by(before, c)
  after[UNITS] = units
  take_units(units, SETTLED)
  buyer.count(before, 1)
  order.put(digest, after)
  journal.append({ entry.REINSTATED, digest, after })
  return { code.DONE, after, false }
end

function commands.settle.apply(c)
  local digest, payment_id, amount, currency = c[2], c[3], c[4], c[5]
  local before = order.get_to_end(digest, header.retention_ms)
  if not before then return { code.ORDER_NOT_FOUND } end

  local known = order.find_payment(before, payment_id)
  if known then
    if known[2] ~= amount or known[3] ~= currency then return { code.IDEMPOTENCY_KEY_REUSED } end
    return { outcome_of_fate[known[4]], before, true }
  end
  local status = before[STATUS]
  if status == order_status.SETTLED then
    return record_due_for_refund(digest, before, c, payment_fate.DUPLICATE, status, entry.DUPLICATE_PAYMENT)
  end
  if status == order_status.REFUND_DUE then
    return record_due_for_refund(digest, before, c, payment_fate.TOO_LATE, status, entry.PAYMENT_TOO_LATE)
  end
  if amount ~= before[AMOUNT] or currency ~= before[CURRENCY] then
    return { code.AMOUNT_MISMATCH, before[AMOUNT], before[CURRENCY] }
  end
  if status == order_status.HELD then return settle_held(digest, before, c) end
  return settle_ended(digest, before, c)
end
