-- hold: set units aside for one buyer until a deadline, all lines or none, at most once for each order digest.
--
-- [hold, the buyer's part of the digest, the order's part, channel, buyer_id, reference, discount, freight,
--  expected amount (-1: none), line_id, sku, quantity, …]: the lines one behind the other, read without tables
-- DONE {sequence, held until, amount, currency, {unit price, …}} · REPEATED {order} · INVALID {field, reason} ·
-- IDEMPOTENCY_KEY_REUSED · SALE_CLOSED · SALE_NOT_OPEN · LEDGER_BEHIND · SKU_NOT_FOUND {sku} · PRICE_CHANGED {amount} ·
-- SOLD_OUT {sku, available} · BUYER_LIMIT_REACHED {scope, limit, bought} · DUE_HOLDS_REMAIN. They are tried in this
-- order, which is the contract's; but a repeat of what was accepted is answered even if its discount is above today's
-- prices.
--
-- This is what a flash sale is made of, so what is packed is packed once, and put together by `..`, without tables.
commands.hold = { reads = 'buyer' }

local ORDER_AMOUNT_MAX = 1e13 -- minor units
local ORDER_HEAD = cmsgpack.pack(ORDER_FORMAT, order_status.HELD)
local FROM_SHARED, NO_REFERENCE = cmsgpack.pack({}), cmsgpack.pack('')
local ENTRY_HEAD = array_header(3) .. cmsgpack.pack(entry.HELD) .. DIGEST_HEADER
local REPLY_HEAD = array_header(6) .. cmsgpack.pack(code.DONE)
local REPEATED_HEAD = array_header(2) .. cmsgpack.pack(code.REPEATED)

-- Whether a request is the one that made this order. Its buyer, channel and key are, or it would not have found it; what
-- else there is to it is in the record, so that no digest of the request need be kept.
local function is_request_of(record, reference, discount, freight, expected, lines)
  if reference ~= record[REFERENCE] or discount ~= record[DISCOUNT] or freight ~= record[FREIGHT]
    or expected ~= (record[AMOUNT_EXPECTED] and record[AMOUNT] or -1) or 4 * #lines ~= 3 * #record[LINES] then
    return false
  end
  local flat, n = record[LINES], 1
  for i = 1, #lines, 3 do
    if lines[i] ~= flat[n] or lines[i + 1] ~= flat[n + 1] or lines[i + 2] ~= flat[n + 2] then return false end
    n = n + 4
  end
  return true
end

-- The value of the lines together, or nil and the SKU that is not in the sale.
local function value_of(lines)
  local value = 0
  for i = 2, #lines, 3 do
    local row = stock.rows[lines[i]] or stock.row(lines[i])
    if not row then return nil, lines[i] end
    value = value + lines[i + 1] * row[PRICE]
  end
  return value
end

-- What the body alone cannot tell, because it depends on prices.
local function refuse_amount(value, discount, amount)
  if discount > value then return { code.INVALID, 'discount_minor', 'is more than the lines are worth' } end
  if amount > ORDER_AMOUNT_MAX then return { code.INVALID, 'lines', 'the order would be worth more than 10^13' } end
  return nil
end

-- Why the units cannot be had, or the buyer may not have them; nil if neither. Holds that are due, the buyer's own ones
-- too, count no longer than it takes to end them.
local function units_refusal(lines, channel, buyer_part)
  while true do
    local short_sku, more_due = short_sku_after_reclaiming(lines, channel)
    if more_due then return { code.DUE_HOLDS_REMAIN } end
    if short_sku then return { code.SOLD_OUT, short_sku, stock.available_to(stock.rows[short_sku], channel) } end
    local broken = buyer.broken_limit(buyer_part, lines)
    if not broken then return nil end
    if due.exhausted then return { code.BUYER_LIMIT_REACHED, broken[1], broken[2], broken[3] } end
    if not reclaim() then return { code.DUE_HOLDS_REMAIN } end
  end
end

-- The lines with their prices, and the prices alone, both packed.
local function pack_lines_and_prices(lines)
  if #lines == 3 then -- as almost all carts of a flash sale are
    local sku = lines[2]
    local price = stock.rows[sku][PRICE]
    return ONE_LINE .. pack_line(lines[1], sku, lines[3], price), ONE_LINE .. pack_cached(price)
  end
  local packed, prices, count = {}, {}, 0
  for i = 1, #lines, 3 do
    count = count + 1
    local sku = lines[i + 1]
    local price = stock.rows[sku][PRICE]
    packed[count], prices[count] = pack_line(lines[i], sku, lines[i + 2], price), pack_cached(price)
  end
  return pack_array(count, packed), pack_array(count, prices)
end

local packed_times, packed_hold_ms, packed_deadline -- the same for all holds of a batch, but for a change of `hold_ms`

local function pack_times()
  if packed_hold_ms ~= state.hold_ms then
    packed_hold_ms = state.hold_ms
    packed_deadline = cmsgpack.pack(now + state.hold_ms)
    packed_times = cmsgpack.pack(now) .. packed_deadline
  end
  return packed_times, packed_deadline
end

local function accept(
    buyer_part, order_part, digest, channel, buyer_id, reference, discount, freight, expected, amount, lines)
  local sequence = cmsgpack.pack(journal.next_sequence())
  local times, deadline = pack_times()
  local packed_lines, packed_prices = pack_lines_and_prices(lines)
  local from = take_units(lines, channel, HELD)
  local packed_amount = pack_cached(amount) .. pack_cached(state.currency)
  local kept = ORDER_HEAD .. pack_cached(channel) .. cmsgpack.pack(buyer_id)
    .. (reference == '' and NO_REFERENCE or cmsgpack.pack(reference)) .. pack_cached(expected >= 0) .. sequence .. times
    .. pack_cached(discount) .. pack_cached(freight) .. packed_amount .. packed_lines
    .. (from and cmsgpack.pack(from) or FROM_SHARED)
  due.add(digest, now + state.hold_ms)
  order.insert(buyer_part, order_part, digest, kept)
  journal.append_packed(
    ENTRY_HEAD .. digest .. RECORD_HEADER, kept, FIRST_VERSION .. sequence .. NOT_SETTLED_NOR_PAID)
  if state.ever_held == 0 then state.set('ever_held', 1) end
  return REPLY_HEAD .. sequence .. deadline .. packed_amount .. packed_prices
end

function commands.hold.apply(
    buyer_part, order_part, channel, buyer_id, reference, discount, freight, expected, ...)
  local digest, lines = buyer_part .. order_part, { ... }
  local before = buyer.bytes[buyer_part] and order.get(digest, header.retention_ms)
  if before and is_request_of(before, reference, discount, freight, expected, lines) then
    return nil, REPEATED_HEAD .. order.pack_record(digest)
  end

  local value, unknown_sku = value_of(lines)
  local amount = value and value - discount + freight
  local refusal = value and refuse_amount(value, discount, amount)
    or before and { code.IDEMPOTENCY_KEY_REUSED }
    or sale_refusal()
    or not value and { code.SKU_NOT_FOUND, unknown_sku }
    or expected >= 0 and expected ~= amount and { code.PRICE_CHANGED, amount }
    or units_refusal(lines, channel, buyer_part)
  if refusal then return refusal end
  return nil, accept(
    buyer_part, order_part, digest, channel, buyer_id, reference, discount, freight, expected, amount, lines)
end
