-- end_hold: ends an open hold: SETTLED, CANCELLED or EXPIRED. Each hold comes here once, so that this is as hot as
--           `hold`: what does not change of an order is copied as the bytes that it is.
local RECORD_HEAD = RECORD_HEADER .. FORMAT
local ENDED, NO_PAYMENT = cmsgpack.pack(ENDED_FORMAT), cmsgpack.pack('', 0)
local ONE_PAYMENT, SETTLED_FATE = array_header(1) .. array_header(5), cmsgpack.pack(payment_fate.SETTLED)
local RETURNED, NOT_RETURNED = cmsgpack.pack(true), cmsgpack.pack(false)

local function settle_units(sku, _, quantity)
  stock.settle(sku, quantity)
end

-- To the pool they came from; out of the sale if it has closed.
local function return_units(sku, pool, quantity)
  stock.give_back(sku, state.status ~= 'closed' and pool or nil, quantity)
end

-- Call `move` with the SKU, the pool and the quantity of whatever units the order has taken.
local function each_unit(record, move)
  local lines, units = record[LINES], record[UNITS]
  for _, taken in ipairs(units) do move(taken[1], taken[2], taken[3]) end
  if #units > 0 then return end
  for n = 1, #lines, 4 do move(lines[n + 1], 'shared', lines[n + 2]) end
end

-- The lines of an ended order, packed.
local function pack_flat(lines)
  if #lines == 4 then
    local line_id = lines[1]
    return pack_line(line_id == '1' and '' or line_id, lines[2], lines[3], lines[4])
  end
  local flat = { unpack(lines) }
  for n = 1, #flat, 4 do
    if flat[n] == position_text(n) then flat[n] = '' end
  end
  return cmsgpack.pack(flat)
end

-- What is kept of an order that ends: little, unless it is odd.
local function keep_ended(before, kept, status, packed, payment_id)
  if #before[UNITS] > 0 or before[CURRENCY] ~= state.currency then return string.sub(packed, #RECORD_HEADER + 1) end
  local created, changes = before[CREATED], journal.next_sequence() - before[SEQUENCE]
  return ENDED .. pack_cached(status) .. string.sub(kept, 3, before[SEQUENCE_END])
    .. pack_cached(created - state.made_at) .. pack_cached((before[HELD_UNTIL] - created) / 1000)
    .. pack_cached(before[DISCOUNT]) .. pack_cached(before[FREIGHT])
    .. (payment_id and cmsgpack.pack(changes, payment_id, now - created) or cmsgpack.pack(changes) .. NO_PAYMENT)
    .. pack_flat(before[LINES])
end

-- `before` is the hold's record, `payment_id` that of the payment, of the right amount, that settles it. Returns the
-- record after it, packed.
function end_hold(digest, before, status, kind, payment_id)
  local kept, more = order.kept[digest], nil
  local packed = RECORD_HEAD .. pack_cached(status) .. string.sub(kept, 3)
  if payment_id then
    each_unit(before, settle_units)
    local at = pack_cached(now)
    packed = packed .. cmsgpack.pack(2, journal.next_sequence()) .. at .. ONE_PAYMENT .. cmsgpack.pack(payment_id)
      .. pack_cached(before[AMOUNT]) .. pack_cached(before[CURRENCY]) .. SETTLED_FATE .. at
  else
    each_unit(before, return_units)
    packed = packed .. cmsgpack.pack(2, journal.next_sequence()) .. NOT_SETTLED_NOR_PAID
    more = state.status == 'closed' and NOT_RETURNED or RETURNED
  end
  due.remove(digest)
  order.change(digest, kind, packed, keep_ended(before, kept, status, packed, payment_id), more)
  return packed
end
