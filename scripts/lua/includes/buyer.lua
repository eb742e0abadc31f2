-- buyer: each buyer of the batch with their orders of this sale, and what their limits look at.
--
-- row  [order, …], the newest orders, oldest first: each a string of its part of the digest and what is kept of it
--      (includes/order.lua); before them, of a buyer who has had more: [parts of the digests of those that have moved
--      out, oldest first, {sku = units of them that count}]
-- A row is found by the buyer's part of an order's digest, so that an order and its buyer are one look-up, and one entry
-- of a hash: most buyers have one order.
local ORDERS_IN_ROW_MAX = 4
local ROW_BYTES_MAX = 4096 -- past it a row is not added to: its orders give way to the next one
local BUYER_ORDERS_MAX = 100 -- that are listed; older ones are still found by their ids
local ONE_ORDER = array_header(1) -- what a row of one order begins with
local ONE_ORDER_BYTE = string.byte(ONE_ORDER)

-- bytes: by the buyer's part, the row's; false where there is no row.
-- rows: those that somebody has looked into, which count from then on: the digests of the orders in the row, `moved` and
--       `size`, in bytes, beside them.
-- changed: the buyers' parts of those to be written.
buyer = { bytes = {}, rows = {}, changed = {}, key = KEYS[5] }
local MOVED_PARTS, MOVED_UNITS = 1, 2

function buyer.part_of(digest)
  return string.sub(digest, 1, BUYER_PART)
end

local function read_row(part, packed)
  local row, orders = { size = #packed }, cmsgpack.unpack(packed)
  if type(orders[1]) == 'table' then row.moved = table.remove(orders, 1) end
  for i, packed_order in ipairs(orders) do
    local digest = part .. string.sub(packed_order, 1, ORDER_PART)
    row[i] = digest
    order.kept[digest] = string.sub(packed_order, ORDER_PART + 1)
  end
  return row
end

function buyer.load(parts)
  local bytes, missing = buyer.bytes, {}
  for _, part in ipairs(parts) do
    if bytes[part] == nil then
      bytes[part] = false
      missing[#missing + 1] = part
    end
  end
  if #missing == 0 then return end
  for i, packed in ipairs(hash_get(buyer.key, missing)) do
    if packed then bytes[missing[i]] = packed end
  end
end

function buyer.row(part)
  if buyer.bytes[part] == nil then buyer.load({ part }) end
  local row, packed = buyer.rows[part], buyer.bytes[part]
  if packed and not row then
    row = read_row(part, packed)
    buyer.rows[part] = row
  end
  return row
end

local function one_order_row(order_part, kept)
  return ONE_ORDER .. string_header(ORDER_PART + #kept) .. order_part .. kept
end

-- What is kept of an order, if it lies in its buyer's row; else nil, and whether orders have moved out of that.
function buyer.kept_in_row(part, digest)
  local packed, row = buyer.bytes[part], buyer.rows[part]
  if packed and not row and string.byte(packed) == ONE_ORDER_BYTE then -- as almost all are: found without a table
    local first = 2 + STRING_HEADER_LENGTH[string.byte(packed, 2)]
    if string.sub(packed, first, first + ORDER_PART - 1) == string.sub(digest, BUYER_PART + 1) then
      return string.sub(packed, first + ORDER_PART)
    end
    return nil, false
  end
  row = buyer.row(part)
  return order.kept[digest], row and row.moved
end

function buyer.change_order(digest, kept)
  local part = buyer.part_of(digest)
  if not buyer.rows[part] then buyer.bytes[part] = one_order_row(string.sub(digest, BUYER_PART + 1), kept) end
  buyer.changed[part] = true
end

local function add_units(units, record, times)
  local lines = record[LINES]
  for n = 1, #lines, 4 do
    local sku, quantity = lines[n + 1], lines[n + 2]
    local count = (units[sku] or 0) + times * quantity
    assert(count >= 0, 'a buyer would have bought less than nothing')
    units[sku] = count > 0 and count or nil
  end
end

-- The oldest order of a full row gives way to the next one.
local function move_oldest(row)
  row.moved = row.moved or { '', {} }
  local digest = table.remove(row, 1)
  local record = order.move_out(digest)
  local parts = row.moved[MOVED_PARTS] .. string.sub(digest, BUYER_PART + 1)
  row.moved[MOVED_PARTS] = string.sub(parts, -(BUYER_ORDERS_MAX - 1) * ORDER_PART) -- at least one lies in the row
  if order.counts(record) then add_units(row.moved[MOVED_UNITS], record, 1) end
end

function buyer.add_order(part, order_part, digest, kept)
  buyer.changed[part] = true
  if not buyer.bytes[part] then
    buyer.bytes[part] = one_order_row(order_part, kept)
    return
  end
  local row = buyer.row(part)
  while #row >= ORDERS_IN_ROW_MAX or (#row > 0 and row.size > ROW_BYTES_MAX) do move_oldest(row) end
  row.size = (#row > 0 and row.size or 0) + #kept
  row[#row + 1] = digest
  order.kept[digest] = kept
end

-- An order that has moved out of the row has changed: what counts of it may be more or less than before.
function buyer.recount_moved(digest, before, after)
  local times = (order.counts(after) and 1 or 0) - (order.counts(before) and 1 or 0)
  if times == 0 then return end
  local part = buyer.part_of(digest)
  add_units(buyer.row(part).moved[MOVED_UNITS], after, times)
  buyer.changed[part] = true
end

-- The digests of the buyer's newest orders, the newest first, at most BUYER_ORDERS_MAX.
function buyer.digests(part)
  local row, found = buyer.row(part), {}
  if not row then return found end
  for i = #row, 1, -1 do found[#found + 1] = row[i] end
  local parts = row.moved and row.moved[MOVED_PARTS] or ''
  local last = math.max(1, #parts - (BUYER_ORDERS_MAX - #row) * ORDER_PART + 1)
  for first = #parts - ORDER_PART + 1, last, -ORDER_PART do
    found[#found + 1] = part .. string.sub(parts, first, first + ORDER_PART - 1)
  end
  return found
end

-- What the buyer holds and has bought, {sku = units}.
function buyer.bought(part)
  local row, units = buyer.row(part), {}
  if not row then return units end
  if row.moved then
    for sku, count in pairs(row.moved[MOVED_UNITS]) do units[sku] = count end
  end
  for _, digest in ipairs(row) do
    local record = order.find(digest)
    if order.counts(record) then add_units(units, record, 1) end
  end
  return units
end

-- Whether anything in this sale limits what a buyer may buy of these lines.
local function is_limited(lines)
  if state.buyer_limit > 0 or state.style_limits ~= '' then return true end
  for i = 2, #lines, 3 do
    if stock.rows[lines[i]][SKU_LIMIT] > 0 then return true end
  end
  return false
end

-- Counted anew from the SKUs, because an operator may move a SKU to another style.
local function units_of_style(bought, style)
  local units = 0
  for sku, quantity in pairs(bought) do
    local row = stock.row(sku)
    if row and row[STYLE] == style then units = units + quantity end
  end
  return units
end

-- The first limit that {line_id, sku, quantity, …} would break: SKU, then style, then sale; nil if none.
-- Returns {scope, limit, units bought before}.
function buyer.broken_limit(part, lines)
  if not is_limited(lines) then return nil end
  local bought = buyer.bought(part)
  local wanted, wanted_style, wanted_sale = {}, {}, 0
  for i = 1, #lines, 3 do
    local sku, quantity = lines[i + 1], lines[i + 2]
    local style = stock.row(sku)[STYLE]
    wanted[sku] = (wanted[sku] or 0) + quantity
    wanted_style[style] = (wanted_style[style] or 0) + quantity
    wanted_sale = wanted_sale + quantity
  end
  for i = 2, #lines, 3 do
    local sku = lines[i]
    local limit, units = stock.row(sku)[SKU_LIMIT], bought[sku] or 0
    if limit > 0 and units + wanted[sku] > limit then return { 'sku', limit, units } end
  end
  if state.style_limits ~= '' then
    local limits = cmsgpack.unpack(state.style_limits)
    for i = 2, #lines, 3 do
      local style = stock.row(lines[i])[STYLE]
      local limit = limits[style]
      if limit then
        local units = units_of_style(bought, style)
        if units + wanted_style[style] > limit then return { 'style', limit, units } end
      end
    end
  end
  if state.buyer_limit > 0 then
    local units = 0
    for _, quantity in pairs(bought) do units = units + quantity end
    if units + wanted_sale > state.buyer_limit then return { 'sale', state.buyer_limit, units } end
  end
  return nil
end

local function pack_row(row)
  local pieces = { array_header(#row + (row.moved and 1 or 0)), row.moved and cmsgpack.pack(row.moved) or '' }
  for _, digest in ipairs(row) do
    local kept = order.kept[digest]
    pieces[#pieces + 1] = string_header(ORDER_PART + #kept)
    pieces[#pieces + 1] = string.sub(digest, BUYER_PART + 1)
    pieces[#pieces + 1] = kept
  end
  return table.concat(pieces)
end

function buyer.pack()
  local changed, count = {}, 0
  for part in pairs(buyer.changed) do
    local row = buyer.rows[part]
    changed[count + 1], changed[count + 2] = part, row and pack_row(row) or buyer.bytes[part]
    count = count + 2
  end
  return function() call_in_pieces('HSET', buyer.key, changed) end
end
