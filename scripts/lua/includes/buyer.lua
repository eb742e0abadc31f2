-- buyer: what each buyer of the batch has bought in this sale, which their limits look at, and their orders' digests.
--
-- row  [digests of the newest orders, 22 characters each, oldest first, {sku = units held and settled}]
local BUYER_ORDERS_MAX = 100
local DIGEST_LENGTH = 22
local DIGESTS, UNITS_BOUGHT = 1, 2

local buyer = { rows = {}, changed = {}, key = nil }

-- A channel's name has no colon, so that the first one ends it.
function buyer.field(channel, buyer_id)
  return channel .. ':' .. buyer_id
end

function buyer.load(fields)
  local missing = {}
  for _, field in ipairs(fields) do
    if buyer.rows[field] == nil then
      buyer.rows[field] = { '', {} }
      missing[#missing + 1] = field
    end
  end
  if #missing == 0 then return end
  for i, packed in ipairs(hash_get(buyer.key, missing)) do
    if packed then buyer.rows[missing[i]] = cmsgpack.unpack(packed) end
  end
end

function buyer.row(field)
  if buyer.rows[field] == nil then buyer.load({ field }) end
  return buyer.rows[field]
end

function buyer.add_order(field, digest)
  local row = buyer.row(field)
  row[DIGESTS] = string.sub(row[DIGESTS] .. digest, -BUYER_ORDERS_MAX * DIGEST_LENGTH)
  buyer.changed[field] = true
end

-- Add an order's units to its buyer's count (times = 1), or take them off (times = -1).
function buyer.count(record, times)
  local field = buyer.field(record[CHANNEL], record[BUYER])
  local bought = buyer.row(field)[UNITS_BOUGHT]
  for _, line in ipairs(record[LINES]) do
    local units = (bought[line[2]] or 0) + times * line[3]
    assert(units >= 0, 'a buyer would have bought less than nothing')
    bought[line[2]] = units > 0 and units or nil
  end
  buyer.changed[field] = true
end

-- The first limit that `lines` would break: SKU, then style, then sale; nil if none.
-- Returns {scope, limit, units bought before}.
function buyer.broken_limit(field, lines)
  local bought = buyer.row(field)[UNITS_BOUGHT]
  local wanted, wanted_style, wanted_sale = {}, {}, 0
  for _, line in ipairs(lines) do
    local style = stock.row(line[2])[STYLE]
    wanted[line[2]] = (wanted[line[2]] or 0) + line[3]
    wanted_style[style] = (wanted_style[style] or 0) + line[3]
    wanted_sale = wanted_sale + line[3]
  end
  for _, line in ipairs(lines) do
    local limit = stock.row(line[2])[SKU_LIMIT]
    local units = bought[line[2]] or 0
    if limit > 0 and units + wanted[line[2]] > limit then return { 'sku', limit, units } end
  end
  if state.style_limits ~= '' then
    local limits = cmsgpack.unpack(state.style_limits)
    for _, line in ipairs(lines) do
      local style = stock.row(line[2])[STYLE]
      local limit = limits[style]
      if limit then
        local units = buyer.units_of_style(bought, style)
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

-- Counted anew from the SKUs, because an operator may move a SKU to another style.
function buyer.units_of_style(bought, style)
  local units = 0
  for sku, quantity in pairs(bought) do
    local row = stock.row(sku)
    if row and row[STYLE] == style then units = units + quantity end
  end
  return units
end

function buyer.pack()
  local changed = {}
  for field in pairs(buyer.changed) do
    changed[#changed + 1] = field
    changed[#changed + 1] = cmsgpack.pack(buyer.rows[field])
  end
  return function() call_in_pieces('HSET', buyer.key, changed) end
end
