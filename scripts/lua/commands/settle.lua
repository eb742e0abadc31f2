-- settle: confirm an order's payment, in the order of the contract's §4.
--
-- [settle, digest, payment_id, amount, currency]
-- DONE, REPEATED, DUPLICATE_PAYMENT, PAYMENT_TOO_LATE {order, recorded before} · ORDER_NOT_FOUND ·
-- IDEMPOTENCY_KEY_REUSED · AMOUNT_MISMATCH {amount, currency} · CONFLICT {field, reason} · DUE_HOLDS_REMAIN
commands.settle = { reads = 'order' }

local outcome_of_fate = {
  [payment_fate.SETTLED] = code.REPEATED,
  [payment_fate.TOO_LATE] = code.PAYMENT_TOO_LATE,
  [payment_fate.DUPLICATE] = code.DUPLICATE_PAYMENT,
}

-- What is answered to a payment that was recorded now, the order packed already.
local function packed_reply(outcome, packed_order)
  return array_header(3) .. cmsgpack.pack(outcome) .. packed_order .. cmsgpack.pack(false)
end

-- Keep a payment that settles nothing, as due for refund.
local function record_due_for_refund(digest, before, payment, fate, status, kind)
  if #before[PAYMENTS] >= PAYMENTS_MAX then
    return { code.CONFLICT, 'payment_id', 'the order has as many payments as can be kept' }
  end
  local after = order.next_version(before)
  after[STATUS] = status
  order.add_payment(after, payment, fate)
  return nil, packed_reply(outcome_of_fate[fate], order.replace(digest, after, kind))
end

local function settled_by(before, payment)
  local after = order.next_version(before)
  after[STATUS] = order_status.SETTLED
  after[SETTLED_AT] = now
  order.add_payment(after, payment, payment_fate.SETTLED)
  return after
end

local function settle_held(digest, before, payment)
  local after = settled_by(before, payment)
  for _, held in ipairs(order.units(before)) do
    stock.row(held[1])
    stock.count(held[1], HELD, -held[3])
    stock.count(held[1], SETTLED, held[3])
  end
  due.remove(digest)
  return nil, packed_reply(code.DONE, order.replace(digest, after, entry.SETTLED))
end

-- A payment for a hold that has ended takes the units anew if they are there, whatever the buyer's limit.
local function settle_ended(digest, before, payment)
  local lines, can_be_had = {}, state.status ~= 'closed'
  for _, line in ipairs(before[LINES]) do
    can_be_had = can_be_had and stock.row(line[2]) ~= nil -- one that has left the sale since has no units to take
    for i = 1, 3 do lines[#lines + 1] = line[i] end
  end
  if can_be_had then
    local short_sku, more_due = short_sku_after_reclaiming(lines, before[CHANNEL])
    if more_due then return { code.DUE_HOLDS_REMAIN } end
    can_be_had = not short_sku
  end
  if not can_be_had then
    return record_due_for_refund(
      digest, before, payment, payment_fate.TOO_LATE, order_status.REFUND_DUE, entry.PAYMENT_TOO_LATE)
  end
  local after = settled_by(before, payment)
  after[UNITS] = take_units(lines, before[CHANNEL], SETTLED) or {}
  return nil, packed_reply(code.DONE, order.replace(digest, after, entry.REINSTATED))
end

function commands.settle.apply(digest, payment_id, amount, currency)
  local before = order.get_to_end(digest, header.retention_ms)
  if not before then return { code.ORDER_NOT_FOUND } end

  local known = order.find_payment(before, payment_id)
  if known then
    if known[2] ~= amount or known[3] ~= currency then return { code.IDEMPOTENCY_KEY_REUSED } end
    return { outcome_of_fate[known[4]], before, true }
  end
  local status, payment = before[STATUS], { payment_id, amount, currency }
  if status == order_status.SETTLED then
    return record_due_for_refund(digest, before, payment, payment_fate.DUPLICATE, status, entry.DUPLICATE_PAYMENT)
  end
  if status == order_status.REFUND_DUE then
    return record_due_for_refund(digest, before, payment, payment_fate.TOO_LATE, status, entry.PAYMENT_TOO_LATE)
  end
  if amount ~= before[AMOUNT] or currency ~= before[CURRENCY] then
    return { code.AMOUNT_MISMATCH, before[AMOUNT], before[CURRENCY] }
  end
  if status == order_status.HELD then return settle_held(digest, before, payment) end
  return settle_ended(digest, before, payment)
end
