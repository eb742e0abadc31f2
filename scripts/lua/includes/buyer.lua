-- buyer: each buyer of the batch with their orders of this sale, and what their limits look at.
--
-- row  [order's part of the digest, record, …], the newest orders, oldest first; before them, of a buyer who has had
--      more: [parts of the digests of those that have moved out, oldest first, {sku = units of them that count}]
-- A row is found by the buyer's part of an order's digest, so that an order and its buyer are one look-up, and one entry
-- of a hash: most buyers have one order.
local BUYER_PART, ORDER_PART = 12, 12 -- lengths; as in engine/domain/identifiers.py
local ORDERS_IN_ROW_MAX = 4
local ROW_BYTES_MAX = 4096 -- past it a row is not added to: its orders give way to the next one
local BUYER_ORDERS_MAX = 100 -- that are listed; older ones are still found by their ids
local PART_HEADER = string.char(0xa0 + ORDER_PART) -- MessagePack's, of a string of this length
local DIGEST_HEADER = string.char(0xa0 + BUYER_PART + ORDER_PART)

local ONE_ORDER = array_header(2) .. PART_HEADER -- what a row of one order begins with

-- changed: by the buyer's part, the row's new bytes, or true where they are still to be packed.
-- rows: by the buyer's part, the digests of the orders in the row, `moved` and the row's `bytes` beside them; the row's
--       bytes as they were read, until somebody looks into it; false where there is no row.
buyer = { rows = {}, changed = {}, key = KEYS[5] }
local MOVED_PARTS, MOVED_UNITS = 1, 2

function buyer.part_of(digest)
  return string.sub(digest, 1, BUYER_PART)
end

local function read_row(part, packed)
  local row, first = { bytes = #packed }, 1
  local kept = cmsgpack.unpack(packed)
  if type(kept[1]) == 'table' then
    row.moved = kept[1]
    first = 2
  end
  for i = first, #kept, 2 do
    local digest = part .. kept[i]
    row[#row + 1] = digest
    order.records[digest] = kept[i + 1]
  end
  return row
end

function buyer.load(parts)
  local rows, missing = buyer.rows, {}
  for _, part in ipairs(parts) do
    if rows[part] == nil then
      rows[part] = false
      missing[#missing + 1] = part
    end
  end
  if #missing == 0 then return end
  for i, packed in ipairs(hash_get(buyer.key, missing)) do
    if packed then rows[missing[i]] = packed end
  end
end

function buyer.row(part)
  if buyer.rows[part] == nil then buyer.load({ part }) end
  local row = buyer.rows[part]
  if type(row) == 'string' then
    row = read_row(part, row)
    buyer.rows[part] = row
  end
  return row or nil
end

function buyer.has_moved_orders(part)
  local row = buyer.row(part)
  return row ~= nil and row.moved ~= nil
end

function buyer.mark_changed(digest)
  buyer.changed[buyer.part_of(digest)] = true
end

local function add_units(units, record, times)
  for _, line in ipairs(record[LINES]) do
    local count = (units[line[2]] or 0) + times * line[3]
    assert(count >= 0, 'a buyer would have bought less than nothing')
    units[line[2]] = count > 0 and count or nil
  end
end

-- The oldest order of a full row gives way to the next one.
local function move_oldest(row)
  row.moved = row.moved or { '', {} }
  local digest = table.remove(row, 1)
  local record = order.move_out(digest)
  local parts = row.moved[MOVED_PARTS] .. string.sub(digest, BUYER_PART + 1)
  row.moved[MOVED_PARTS] = string.sub(parts, -(BUYER_ORDERS_MAX - ORDERS_IN_ROW_MAX) * ORDER_PART)
  if order.counts(record) then add_units(row.moved[MOVED_UNITS], record, 1) end
end

function buyer.add_order(part, order_part, digest, packed)
  if not buyer.rows[part] then
    buyer.rows[part] = { digest, bytes = #packed }
    buyer.changed[part] = ONE_ORDER .. order_part .. packed
  else
    local row = buyer.row(part)
    while #row >= ORDERS_IN_ROW_MAX or (#row > 0 and row.bytes > ROW_BYTES_MAX) do move_oldest(row) end
    row.bytes = (#row > 0 and row.bytes or 0) + #packed
    row[#row + 1] = digest
    buyer.changed[part] = true
  end
end

-- An order that has moved out of the row has changed: what counts of it may be more or less than before.
function buyer.recount_moved(digest, before, after)
  local times = (order.counts(after) and 1 or 0) - (order.counts(before) and 1 or 0)
  if times == 0 then return end
  add_units(buyer.row(buyer.part_of(digest)).moved[MOVED_UNITS], after, times)
  buyer.mark_changed(digest)
end

-- The digests of the buyer's newest orders, the newest first.
function buyer.digests(part)
  local row, found = buyer.row(part), {}
  if not row then return found end
  for i = #row, 1, -1 do found[#found + 1] = row[i] end
  local parts = row.moved and row.moved[MOVED_PARTS] or ''
  for first = #parts - ORDER_PART + 1, 1, -ORDER_PART do
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
  local pieces = { array_header(2 * #row + (row.moved and 1 or 0)) }
  if row.moved then pieces[2] = cmsgpack.pack(row.moved) end
  for _, digest in ipairs(row) do
    pieces[#pieces + 1] = PART_HEADER
    pieces[#pieces + 1] = string.sub(digest, BUYER_PART + 1)
    pieces[#pieces + 1] = order.packed(digest)
  end
  return table.concat(pieces)
end

function buyer.pack()
  local changed, count = {}, 0
  for part, packed in pairs(buyer.changed) do
    changed[count + 1], changed[count + 2] = part, packed == true and pack_row(buyer.rows[part]) or packed
    count = count + 2
  end
  return function() call_in_pieces('HSET', buyer.key, changed) end
end
