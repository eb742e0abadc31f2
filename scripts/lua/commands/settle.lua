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

local REPLY_HEAD, RECORDED_NOW, RECORDED_BEFORE = array_header(3), cmsgpack.pack(false), cmsgpack.pack(true)

-- What is answered to a payment that was recorded now, the order packed already.
local function packed_reply(outcome, packed_order)
  return REPLY_HEAD .. pack_cached(outcome) .. packed_order .. RECORDED_NOW
end

-- Keep a payment that settles nothing, as due for refund.
local function record_due_for_refund(digest, before, payment, fate, status, kind)
  if #before[PAYMENTS] >= PAYMENTS_MAX then
    return { code.CONFLICT, 'payment_id', 'the order has as many payments as can be kept' }
  end
  local after = order.next_version(before, status)
  order.add_payment(after, payment, fate)
  return nil, packed_reply(outcome_of_fate[fate], order.replace(digest, after, kind))
end

-- A payment for a hold that has ended takes the units anew if they are there, whatever the buyer's limit.
local function settle_ended(digest, before, payment)
  local lines, flat, can_be_had = {}, before[LINES], state.status ~= 'closed'
  for n = 1, #flat, 4 do
    can_be_had = can_be_had and stock.row(flat[n + 1]) ~= nil -- one that has left the sale since has no units to take
    for i = 0, 2 do lines[#lines + 1] = flat[n + i] end
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
  local after = order.next_version(before, order_status.SETTLED)
  after[SETTLED_AT] = now
  order.add_payment(after, payment, payment_fate.SETTLED)
  after[UNITS] = take_units(lines, before[CHANNEL], SETTLED) or {}
  return nil, packed_reply(code.DONE, order.replace(digest, after, entry.REINSTATED))
end

function commands.settle.apply(digest, payment_id, amount, currency)
  local before = order.get_to_end(digest, header.retention_ms)
  if not before then return { code.ORDER_NOT_FOUND } end

  local known = order.find_payment(before, payment_id)
  if known then
    if known[2] ~= amount or known[3] ~= currency then return { code.IDEMPOTENCY_KEY_REUSED } end
    return nil, REPLY_HEAD .. pack_cached(outcome_of_fate[known[4]]) .. order.pack_record(digest) .. RECORDED_BEFORE
  end
  local status, matches = before[STATUS], amount == before[AMOUNT] and currency == before[CURRENCY]
  if status == order_status.HELD and matches then -- as almost all are
    return nil, packed_reply(code.DONE, end_hold(digest, before, order_status.SETTLED, entry.SETTLED, payment_id))
  end
  local payment = { payment_id, amount, currency }
  if status == order_status.SETTLED then
    return record_due_for_refund(digest, before, payment, payment_fate.DUPLICATE, status, entry.DUPLICATE_PAYMENT)
  end
  if status == order_status.REFUND_DUE then
    return record_due_for_refund(digest, before, payment, payment_fate.TOO_LATE, status, entry.PAYMENT_TOO_LATE)
  end
  if not matches then return { code.AMOUNT_MISMATCH, before[AMOUNT], before[CURRENCY] } end
  return settle_ended(digest, before, payment)
end
