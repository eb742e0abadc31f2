-- hold: set units aside for one buyer until a deadline, all lines or none, at most once for each order digest.
--
-- [hold, digest, channel, buyer_id, body digest, reference, discount, freight, expected amount (-1: none),
--  {{line_id, sku, quantity}, …}]
-- DONE, REPEATED {order} · INVALID {field, reason} · IDEMPOTENCY_KEY_REUSED · SALE_CLOSED · SALE_NOT_OPEN ·
-- LEDGER_BEHIND · SKU_NOT_FOUND {sku} · PRICE_CHANGED {amount} · SOLD_OUT {sku, available} · BUYER_LIMIT_REACHED
-- {scope, limit, bought} · DUE_HOLDS_REMAIN. They are tried in this order, which is the contract's; but a repeat of
-- what was accepted is answered even if its discount is above today's prices.
commands.hold = {}

local ORDER_AMOUNT_MAX = 1e13 -- minor units

function commands.hold.needs(c, need)
  need.order(c[2])
  need.buyer(buyer.field(c[3], c[4]))
  for _, line in ipairs(c[10]) do need.sku(line[2]) end
end

-- The lines with their prices, and their value together; or nil and the SKU that is not in the sale.
local function price_lines(requested)
  local lines, value = {}, 0
  for i, line in ipairs(requested) do
    local row = stock.row(line[2])
    if not row then return nil, line[2] end
    lines[i] = { line[1], line[2], line[3], row[PRICE] }
    value = value + line[3] * row[PRICE]
  end
  return lines, value
end

-- What the body alone cannot tell, because it depends on prices.
local function refuse_amount(value, discount, amount)
  if discount > value then return { code.INVALID, 'discount_minor', 'is more than the lines are worth' } end
  if amount > ORDER_AMOUNT_MAX then return { code.INVALID, 'lines', 'the order would be worth more than 10^13' } end
  return nil
end

local function sale_refusal()
  if state.status == 'closed' then return { code.SALE_CLOSED } end
  if state.status ~= 'open' then return { code.SALE_NOT_OPEN } end
  if state.sequence - state.persisted >= header.backlog_max then return { code.LEDGER_BEHIND } end
  return nil
end

-- The units for a buyer, within their limits; or nil and the refusal. Holds that are due, their own ones too, count no
-- longer than it takes to end them.
local function find_units_for(lines, channel, field)
  while true do
    local units, short_sku, more_due = find_units_reclaiming(lines, channel)
    if not units then
      if more_due then return nil, { code.DUE_HOLDS_REMAIN } end
      return nil, { code.SOLD_OUT, short_sku, stock.available_to(stock.row(short_sku), channel) }
    end
    local broken = buyer.broken_limit(field, lines)
    if not broken then return units end
    if due.exhausted then return nil, { code.BUYER_LIMIT_REACHED, broken[1], broken[2], broken[3] } end
    if not reclaim() then return nil, { code.DUE_HOLDS_REMAIN } end
  end
end

function commands.hold.apply(c)
  local digest, channel, buyer_id, body_digest = c[2], c[3], c[4], c[5]
  local discount, freight, expected = c[7], c[8], c[9]

  local before = order.get(digest, header.retention_ms)
  if before and before[BODY_DIGEST] == body_digest then return { code.REPEATED, before } end

  local lines, value = price_lines(c[10])
  local amount = lines and value - discount + freight
  local unacceptable = lines and refuse_amount(value, discount, amount)
  if unacceptable then return unacceptable end
  if before then return { code.IDEMPOTENCY_KEY_REUSED } end
  local refusal = sale_refusal()
  if refusal then return refusal end
  if not lines then return { code.SKU_NOT_FOUND, value } end
  if expected >= 0 and expected ~= amount then return { code.PRICE_CHANGED, amount } end

  local field = buyer.field(channel, buyer_id)
  local units, no = find_units_for(lines, channel, field)
  if not units then return no end

  local sequence = journal.next_sequence()
  local held_until = now + state.hold_ms
  local record = {
    ORDER_FORMAT, order_status.HELD, channel, buyer_id, c[6], body_digest, sequence, now, held_until, discount,
    freight, amount, state.currency, lines, units, 1, sequence, 0, {},
  }
  take_units(units, HELD)
  buyer.add_order(field, digest)
  buyer.count(record, 1)
  due.add(digest, held_until)
  order.put(digest, record)
  journal.append({ entry.HELD, digest, record })
  if state.ever_held == 0 then state.set('ever_held', 1) end
  return { code.DONE, record }
end
